"""Gradients of a transfer on disk, so that one that was interrupted goes on to the same bits."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slipstream.evaluation.processes import from_main_process, is_main_process, on_main_process
from slipstream.matching.gradients import Gradient, LowRank
from slipstream.storage.writing import whole_file

GRADIENTS = "gradients"


class GradientStore:
    """A folder of gradients in the order they were taken; without a folder it only computes.

    A resumed transfer repeats its matchings, which are cheap, with stored gradients, which are
    expensive: it ends in the same weights to the bit. Of several processes only the main one knows
    the folder, and all of them compute a gradient, or none.
    """

    def __init__(self, run: Path | None = None, *, device: torch.device | str = "cpu") -> None:
        self._folder = run / GRADIENTS if run is not None and is_main_process() else None
        self._device = device
        self._asked = 0
        self.reused = 0
        self._found = on_main_process(self._stored)

    def _stored(self) -> frozenset[str]:
        if self._folder is None:
            return frozenset()
        self._folder.mkdir(exist_ok=True)
        return frozenset(path.name for path in self._folder.glob("*.safetensors"))

    def get(
        self, *, batches: str, compute: Callable[[], Mapping[str, Gradient]]
    ) -> dict[str, Gradient]:
        """Return the next gradient: stored by the transfer that is resumed, or computed now.

        Args:
            batches: Fingerprint of the batches it is taken on, in all processes.
            compute: Called when it is not there.

        Returns:
            One gradient for every tensor.

        Raises:
            ValueError: If it was taken on other batches.
        """
        name = f"{self._asked:06d}.safetensors"
        self._asked += 1
        if name in self._found:
            self.reused += 1
            stored = _read(self._folder / name) if self._folder is not None else None
            before, flat = from_main_process(stored) or ("", {})
            if before != batches:
                raise ValueError(
                    f"The data gives other batches than when {name} was computed: a transfer can "
                    "only be resumed on the same data in the same order (seed the loader's "
                    "generator)."
                )
            return _unflattened(flat, self._device)
        gradient = dict(compute())
        if self._folder is not None:
            with whole_file(self._folder / name) as temporary:
                save_file(_flat(gradient), temporary, metadata={"batches": batches})
        return gradient

    def remove(self) -> None:
        """Delete the folder: the transfer is finished."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _flat(gradient: Mapping[str, Gradient]) -> dict[str, Tensor]:
    flat = {}
    for name, value in gradient.items():
        if isinstance(value, LowRank):
            flat[f"{name}/left"] = value.left.contiguous()
            flat[f"{name}/right"] = value.right.contiguous()
        else:
            flat[name] = value.contiguous()
    return flat


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The fingerprint of the batches, and the tensors."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        # Cloned: products of values with another alignment in memory may be rounded differently.
        tensors = {name: file.get_tensor(name).clone() for name in names}
        return (file.metadata() or {}).get("batches", ""), tensors


def _unflattened(flat: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Gradient]:
    there = {name: value.to(device) for name, value in flat.items()}
    gradient: dict[str, Gradient] = {n: v for n, v in there.items() if "/" not in n}
    for name, left in there.items():
        if name.endswith("/left"):
            tensor = name.removesuffix("/left")
            gradient[tensor] = LowRank(left, there[f"{tensor}/right"])
    return gradient
