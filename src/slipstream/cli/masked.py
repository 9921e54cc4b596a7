"""Whether what a command made of a masked run still has the mask."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slipstream.weights import Weights

FEWER = 0.01  # of all weights: fewer may have become 0, or not, by chance


def lost_mask(run: "Weights", made: "Weights") -> str | None:
    """Return a line for the user if weights that are 0 in a run are not in what was made of it.

    Args:
        run: How the run ends.
        made: What was made of it.

    Returns:
        The line, or None where no more than a few zeros were lost.
    """
    before, after = share_of_zeros(run), share_of_zeros(made)
    if before - after < FEWER:
        return None
    where = "of the weights are 0 at the end of the run"
    return f"{before:.1%} {where}, {after:.1%} here: no mask stays"


def share_of_zeros(weights: "Weights") -> float:
    """Return the share of zeros in all tensors of two or more dimensions.

    Example:
        >>> import torch
        >>> share_of_zeros({"weight": torch.eye(2), "bias": torch.zeros(2)})
        0.5
    """
    masked = [value for value in weights.values() if value.dim() > 1]
    zeros = sum(int((value == 0).sum()) for value in masked)
    return zeros / (sum(value.numel() for value in masked) or 1)
