"""How much of what was found is training data: always beside inputs that were never trained on."""

from dataclasses import dataclass
from pathlib import Path

from scipy.stats import mannwhitneyu
from torch import Tensor
from torch.nn.functional import normalize

from slipstream.storage.tensor_file import map_tensors, tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.trajectory import declare_companions

PICTURES = "pictures.safetensors"  # in the folder of an attempt
_SHOWN = 12  # of the training data, and of the held-out data


@dataclass(frozen=True, eq=False)
class Likeness:
    """How much inputs are like the best of some candidates, each seen against the mean input."""

    train: Tensor  # (N,) of each training input: its correlation with the most similar candidate
    held_out: Tensor  # (H,) the same of inputs that were never trained on: the control
    ceiling: float  # median of held-out inputs if every training input had been found exactly

    @property
    def difference(self) -> float:
        """Median of the training inputs less that of the held-out ones."""
        return float(self.train.median() - self.held_out.median())

    @property
    def chance(self) -> float:
        """Probability of such ranks if training inputs were no more alike than held-out ones."""
        sides = self.train.cpu().numpy(), self.held_out.cpu().numpy()
        return float(mannwhitneyu(*sides, alternative="greater").pvalue)


def likeness(found: Tensor, train: Tensor, held_out: Tensor) -> Likeness:
    """Correlate training inputs and held-out inputs with the most similar of what was found.

    Inputs of one kind are all alike: any digit correlates with any other. So the mean of the
    held-out inputs, which is nobody's secret, is taken away first.

    Args:
        found: (m, *shape) candidates.
        train: (N, *shape) what the network was trained on.
        held_out: (H, *shape) inputs of the same kind that it never saw.

    Returns:
        Correlations, from -1 to 1.

    Example:
        >>> held = Tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(likeness(held[:1], held[:1], held).difference, 6)  # 1 less -1
        2.0
    """
    centre = held_out.mean(0)
    sides = {
        name: normalize((value.detach() - centre).flatten(1), dim=1)
        for name, value in (("found", found), ("train", train), ("held", held_out))
    }
    best = {name: (sides[name] @ sides["found"].T).amax(1) for name in ("train", "held")}
    nearest = (sides["held"] @ sides["train"].T).amax(1)
    return Likeness(best["train"], best["held"], float(nearest.median()))


@dataclass(frozen=True, eq=False)
class Pictures:
    """Inputs, the most alike first, and below each the candidate that is most like it."""

    train: Tensor  # (n, *shape)
    train_found: Tensor
    held_out: Tensor
    held_out_found: Tensor

    @classmethod
    def of(cls, found: Tensor, train: Tensor, held_out: Tensor) -> "Pictures":
        """Pair inputs with candidates."""
        measured, centre = likeness(found, train, held_out), held_out.mean(0)
        candidates = normalize((found.detach() - centre).flatten(1), dim=1)
        parts = []
        for inputs, values in ((train, measured.train), (held_out, measured.held_out)):
            own = inputs[values.argsort(descending=True)[:_SHOWN]]
            alike = normalize((own - centre).flatten(1), dim=1) @ candidates.T
            parts += [own, found.detach()[alike.argmax(1)]]
        return cls(*parts)

    def save(self, folder: Path) -> None:
        """Write them beside the snapshots of a run."""
        declare_companions(folder, PICTURES)
        named = {name: value.cpu().contiguous() for name, value in vars(self).items()}
        write_whole(folder / PICTURES, tensor_chunks(named))

    @classmethod
    def load(cls, folder: Path) -> "Pictures | None":
        """Read what `save` wrote; None where there is nothing."""
        file = folder / PICTURES
        return cls(**map_tensors(file)) if file.is_file() else None
