"""Reader of Omniglot in the layout it is distributed in: folders of drawings, or zips of them."""

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from slipstream.testbed.files import missing

Part = Literal["background", "evaluation", "all"]
DRAWERS = 20  # people who drew each character
_LAYOUT = "images_{}.zip, or the folder images_{} with ALPHABET/characterNN/*.png"


@dataclass(frozen=True)
class Characters:
    """Characters of several alphabets, each drawn by the same number of people.

    Example:
        >>> names = ("Greek/character01", "Greek/character02", "Latin/character01")
        >>> Characters(torch.zeros(3, 20, 1, 28, 28), names).of("Latin").names
        ('Latin/character01',)
    """

    images: Tensor  # float32, (characters, drawers, 1, size, size): ink is 1, paper 0
    names: tuple[str, ...]  # ALPHABET/characterNN of each

    def __len__(self) -> int:
        return len(self.names)

    @property
    def alphabets(self) -> tuple[str, ...]:
        """The alphabet of each character."""
        return tuple(name.partition("/")[0] for name in self.names)

    def of(self, *alphabets: str) -> "Characters":
        """Return the characters of some alphabets.

        Raises:
            ValueError: If there is no such alphabet.
        """
        own = self.alphabets
        for alphabet in alphabets:
            if alphabet not in own:
                there = ", ".join(dict.fromkeys(own))
                raise ValueError(f"There is no alphabet {alphabet!r}; there are {there}.")
        at = [place for place, alphabet in enumerate(own) if alphabet in alphabets]
        return Characters(self.images[at], tuple(self.names[place] for place in at))


def read_omniglot(folder: str | Path, *, part: Part = "background", size: int = 28) -> Characters:
    """Read Omniglot's drawings, as they are or zipped.

    Source of the data: "Human-level concept learning through probabilistic program induction"
    (Lake, Salakhutdinov, Tenenbaum, 2015).

    Args:
        folder: Holds `images_background` and `images_evaluation`, as folders or as `.zip`, itself
            or in `omniglot-py`.
        part: The 30 alphabets to learn from, the 20 to be judged by, or both.
        size: Height and width that the drawings of 105 x 105 points are brought to.

    Returns:
        The characters in the order of their names.

    Raises:
        FileNotFoundError: If there is no such folder, or no part in it.
        ValueError: If a file is damaged, a character was not drawn 20 times, or an argument is
            none of its choices.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be {', '.join(get_args(Part))}, got {part!r}.")
    if size < 1:
        raise ValueError(f"size must be at least 1 point, got {size}.")
    drawings: dict[str, list[np.ndarray]] = {}
    for name in ("background", "evaluation") if part == "all" else (part,):
        for path, read in _files(Path(folder), name):
            character = "/".join(PurePosixPath(path).parts[-3:-1])
            drawings.setdefault(character, []).append(_image(path, read(), size))
    for character, drawn in drawings.items():
        if len(drawn) != DRAWERS:
            raise ValueError(
                f"{folder} holds {len(drawn)} drawings of {character}, expected {DRAWERS}: "
                "unpack or copy it again."
            )
    names = tuple(sorted(drawings))
    stacked = np.stack([np.stack(drawings[name]) for name in names])[:, :, None]
    return Characters(torch.from_numpy(stacked), names)


def _files(folder: Path, part: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Path and reader of every drawing, in order."""
    name = f"images_{part}"
    for place in (folder, folder / "omniglot-py"):
        if (place / name).is_dir():
            paths = sorted((place / name).glob("*/character*/*.png"))
            if not paths:
                missing(place / name, "ALPHABET/characterNN/*.png in it")
            yield from ((path.as_posix(), path.read_bytes) for path in paths)
            return
        if (place / f"{name}.zip").is_file():
            yield from _zipped(place / f"{name}.zip")
            return
    missing(folder, f"{_LAYOUT.format(part, part)}, in it or in omniglot-py")


def _zipped(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        with zipfile.ZipFile(path) as archive:
            drawings = sorted(name for name in archive.namelist() if name.endswith(".png"))
            if not drawings:
                raise ValueError(f"{path} holds no drawing: expected ALPHABET/characterNN/*.png.")
            for name in drawings:
                yield name, lambda name=name: archive.read(name)  # type: ignore[misc]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a zip file, or is damaged: {error}.") from error


def _image(path: str, content: bytes, size: int) -> np.ndarray:
    """A drawing with ink 1 and paper 0, float32, (size, size)."""
    from PIL import Image  # slow to import, and only needed here

    try:
        with Image.open(io.BytesIO(content)) as image:
            grey = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not an image, or is cut short: {error}.") from error
    return 1 - np.asarray(grey, np.float32) / 255
