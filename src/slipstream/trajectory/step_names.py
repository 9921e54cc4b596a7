"""Which step a checkpoint is of, by the names of all files of a folder together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = re.compile(
    r"(?P<word>[A-Za-z]*)(?P<gap>[^A-Za-z\d]*)"
    r"(?P<number>\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?(?:e\d+)?)(?P<unit>[kKmM](?![A-Za-z]))?"
)
_KINDS = {  # words before a number, the surest first
    "step": ("step", "steps", "globalstep", "iter", "iters", "iteration", "it"),
    "epoch": ("epoch", "epochs", "ep"),
    "checkpoint": ("checkpoint", "ckpt", "cp", "snapshot", "model", "weights", "net"),
}
# Words before a number that is no step: what was measured, or which of several trainings it is.
_OTHERS = (
    *("acc", "accuracy", "loss", "val", "valid", "f", "auc", "score", "ppl", "perplexity", "bleu"),
    *("rouge", "map", "miou", "iou", "psnr", "ssim", "fid", "mse", "mae", "rmse", "err", "error"),
    *("reward", "lr", "wd", "bs", "batch", "seed", "fold", "rank", "gpu", "worker", "v", "best"),
    "top",
)
_UNITS = {"": 1, "k": 1000, "m": 1_000_000}


@dataclass(frozen=True)
class _Number:
    """A number in a name."""

    word: str  # the letters before it
    kind: str  # of that word; "" if it is not one of ours
    glued: bool  # to letters: "resnet18"
    bare: bool  # right behind another number: "1_000"
    value: int | None  # None if it is not whole: a metric


def steps_in(names: Sequence[str]) -> dict[str, int | None]:
    """Return the step in each name.

    A number after a word such as "step" is taken, else one after "epoch", else one after
    "checkpoint" and the like, else the only other whole number. Decimals are metrics, as are
    numbers after words such as "loss" or "seed"; "1k", "1,000" and "1e3" are 1000.

    Args:
        names: Of files or folders, with their suffix.

    Returns:
        The step by name, or None where there is no number.

    Raises:
        ValueError: If a name has several numbers and none is surely the step, or some names hold
            the epoch and others a step or another number.

    Example:
        >>> steps_in(["epoch=3-step=1200.ckpt", "best.ckpt"])
        {'epoch=3-step=1200.ckpt': 1200, 'best.ckpt': None}
        >>> steps_in(["epoch_2_loss_0.25.pt"]), steps_in(["resnet18_40.pt"])
        ({'epoch_2_loss_0.25.pt': 2}, {'resnet18_40.pt': 40})
    """
    found = {name: _number_in(name) for name in names}
    kinds = {number.kind for number in found.values() if number is not None}
    if kinds - {""}:  # beside "epoch_3.pt", "resnet18.pt" has no step
        found = {
            n: None if v is not None and not v.kind and v.glued else v for n, v in found.items()
        }
        kinds = {number.kind for number in found.values() if number is not None}
    if "epoch" in kinds and len(kinds) > 1:
        raise ValueError(
            f"Some of the names {', '.join(names)} hold the epoch and others a step or another "
            "number: give the steps yourself."
        )
    return {name: None if number is None else number.value for name, number in found.items()}


def _number_in(name: str) -> _Number | None:
    stem = re.sub(r"(\.(pt|pth|ckpt|bin|safetensors|packed|tar|model))+$", "", name, flags=re.I)
    numbers = [_number(match) for match in _NUMBER.finditer(stem)]
    for kind in _KINDS:
        if of_kind := [n for n in numbers if n.kind == kind and n.value is not None]:
            chosen = of_kind[-1] if kind == "step" else of_kind[0]
            following = numbers[numbers.index(chosen) + 1 :][:1]
            if any(number.bare and number.value is not None for number in following):
                raise ValueError(
                    f"{name} holds two numbers behind each other, so that its {kind} is unclear: "
                    "say the steps yourself."
                )
            return chosen
    whole = [n for n in numbers if n.value is not None and n.word.lower() not in _OTHERS]
    free = [number for number in whole if not number.glued] or whole
    if len({number.value for number in free}) > 1:
        raise ValueError(
            f"{name} holds several numbers, and none is surely its step: say the steps yourself."
        )
    return free[0] if free else None


def _number(match: re.Match[str]) -> _Number:
    word, gap = match["word"].lower(), match["gap"]
    kind = next((k for k, words in _KINDS.items() if word in words and len(gap) <= 3), "")
    text, unit = match["number"].replace(",", ""), (match["unit"] or "").lower()
    value = float(text) * _UNITS[unit]
    metric = "." in text and not unit
    whole = int(value) if value.is_integer() and not metric else None
    bare = not word and len(gap) == 1
    return _Number(word, kind, bool(word) and not gap, bare, whole)
