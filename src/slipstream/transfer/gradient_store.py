"""Gradients of an unfinished transfer, kept on disk so that it can go on after an interruption.

A resumed transfer replays its matchings, which are cheap, on stored gradients, which are not. It
therefore ends in the same weights to the bit.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slipstream.matching.low_rank import Gradient, LowRank
from slipstream.transfer.files import whole_file

FOLDER = "gradients"


class GradientStore:
    """A folder of gradients in the order they were taken; without a folder it only computes."""

    def __init__(self, run: Path | None, *, writes: bool = True) -> None:
        self._folder = run / FOLDER if run is not None else None
        self._writes = writes
        self._found: frozenset[str] = frozenset()
        self._asked = 0
        self.reused = 0
        if self._folder is not None:
            if writes:
                self._folder.mkdir(exist_ok=True)
            self._found = frozenset(path.name for path in self._folder.glob("*.safetensors"))

    def get(
        self, *, batches: str, compute: Callable[[], Mapping[str, Gradient]]
    ) -> dict[str, Gradient]:
        """Return the next gradient: stored by the transfer that is resumed, or computed now.

        Args:
            batches: Fingerprint of the batches it is taken on.
            compute: Called when it is not there.

        Returns:
            One gradient for every tensor.

        Raises:
            ValueError: If it was taken on other batches.
        """
        name = f"{self._asked:06d}.safetensors"
        self._asked += 1
        if self._folder is None:
            return dict(compute())
        path = self._folder / name
        if name in self._found:
            self.reused += 1
            return _read(path, batches)
        gradient = dict(compute())
        if self._writes:
            with whole_file(path) as temporary:
                save_file(_flat(gradient), temporary, metadata={"batches": batches})
        return gradient

    def remove(self) -> None:
        """Delete the folder: the transfer is finished."""
        if self._folder is not None and self._writes:
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


def _read(path: Path, batches: str) -> dict[str, Gradient]:
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("batches") != batches:
            raise ValueError(
                f"The data gives other batches than when {path.name} was computed: a transfer can "
                "only be resumed on the same data in the same order (seed the loader's generator)."
            )
        names = list(file.keys())
        # Cloned: products of numbers that lie differently in memory may be rounded differently.
        flat = {name: file.get_tensor(name).clone() for name in names}
    gradient: dict[str, Gradient] = {n: v for n, v in flat.items() if "/" not in n}
    for name in flat:
        if name.endswith("/left"):
            tensor = name.removesuffix("/left")
            gradient[tensor] = LowRank(flat[name], flat[f"{tensor}/right"])
    return gradient
