"""Conditional generators in one file: their weights, and the configuration that builds them."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from slipstream.storage.reading import parsing
from slipstream.testbed.conditional_diffusion import ConditionalDiffusion
from slipstream.testbed.conditional_vae import ConditionalVAE
from slipstream.weights import check_same_layout, load_weights_, weights_of

TestbedGenerator = ConditionalVAE | ConditionalDiffusion
KINDS: dict[str, type[TestbedGenerator]] = {
    "vae": ConditionalVAE, "diffusion": ConditionalDiffusion,
}  # fmt: skip


def save_generator(
    generator: TestbedGenerator, file: str | Path, *, overwrite: bool = False
) -> None:
    """Write a generator of the testbed to a safetensors file.

    Args:
        generator: A conditional VAE or diffusion model.
        file: Where.
        overwrite: Whether to replace a file that is there.

    Raises:
        FileExistsError: If the file is there.
    """
    if Path(file).exists() and not overwrite:
        raise FileExistsError(f"{file} is already there: give another file, or overwrite it.")
    kind = next(name for name, known in KINDS.items() if isinstance(generator, known))
    about = {"generator": kind, "configuration": json.dumps(generator.configuration)}
    save_file({n: v.contiguous() for n, v in weights_of(generator).items()}, file, about)


def load_generator(file: str | Path) -> TestbedGenerator:
    """Read a generator that `save_generator` wrote.

    Args:
        file: A safetensors file.

    Returns:
        The generator, in eval mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else, or is damaged.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    with parsing(file, "generator"):
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.offset_keys()}
        if about.get("generator") not in KINDS:
            raise ValueError("it was not written by save_generator")
        with torch.device("meta"):  # sizes from anywhere are compared before memory is taken
            planned = KINDS[about["generator"]](**json.loads(about["configuration"]))
        check_same_layout(weights_of(planned), weights, names=("its configuration", "the file"))
        generator = KINDS[about["generator"]](**json.loads(about["configuration"]))
        load_weights_(generator, weights)
    generator.eval()
    return generator
