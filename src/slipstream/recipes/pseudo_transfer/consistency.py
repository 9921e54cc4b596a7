"""What can be learned from inputs without labels: UDA, FixMatch, pseudo-labels, entropy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from slipstream.storage.plan_fields import check_choices, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slipstream.recipes.pseudo_transfer.augmentation import Augmentation

Unsupervised = Literal["uda", "fixmatch", "pseudo-label", "entropy"]


class Unlabelled(NamedTuple):
    """A loss on inputs without labels, and how many of them count in it."""

    loss: "Tensor"  # the mean over all inputs, 0-dim
    confident: float  # share of the inputs above the threshold


@dataclass(frozen=True)
class Consistency:
    """A loss on inputs without labels, as plain data.

    With p the network's probabilities, no gradient through p where it is a target:

    - `uda`: 1(max p(weak x) > threshold) CE(p(weak x) sharpened by temperature, p(strong x))
    - `fixmatch`: 1(max p(weak x) >= threshold) CE(argmax p(weak x), p(strong x))
    - `pseudo-label`: CE(argmax p(x), p(x))
    - `entropy`: CE(p(x), p(x)), with the gradient through both

    Each is the mean over all inputs, those below the threshold counting 0.

    Source: "Unsupervised Data Augmentation for Consistency Training" (Xie, Dai, Hovy, Luong, Le,
    2020), equation 1 and section 2.2, where x is not changed for the target; "FixMatch: Simplifying
    Semi-Supervised Learning with Consistency and Confidence" (Sohn et al., 2020), equation 4;
    "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural
    Networks" (Lee, 2013), whose coefficient that rises in time is the recipe's; "Semi-supervised
    Learning by Entropy Minimization" (Grandvalet, Bengio, 2004).

    Example:
        >>> import torch
        >>> loss, _ = Consistency("entropy").of(torch.nn.Identity(), torch.zeros(1, 4))
        >>> torch.isclose(loss, torch.tensor(4.0).log())
        tensor(True)
    """

    kind: Unsupervised = option("uda", "Loss on inputs without labels.")
    temperature: float = option(0.4, "Sharpening of uda's targets.")
    threshold: float | None = option(
        None, "Confidence from which an input counts.", shown="0.8 for uda, 0.95 for fixmatch"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}.")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, got {self.threshold}.")
        if self.threshold is not None and not self.augmented:
            raise ValueError(f"{self.kind} has no threshold; leave it out.")

    @property
    def augmented(self) -> bool:
        """Whether it compares changed inputs."""
        return self.kind in ("uda", "fixmatch")

    @property
    def confidence(self) -> float:
        """The threshold that holds: what was given, or that of the paper."""
        usual = {"uda": 0.8, "fixmatch": 0.95}.get(self.kind, 0.0)
        return usual if self.threshold is None else self.threshold

    def of(
        self,
        model: "nn.Module",
        inputs: "Tensor",
        *,
        seed: int = 0,
        weak: "Augmentation | None" = None,
        strong: "Augmentation | None" = None,
    ) -> "Unlabelled":
        """Return the loss of a network on inputs.

        Args:
            model: Maps inputs to logits, in the mode it is in.
            inputs: (examples, *shape).
            seed: Of the augmentations.
            weak: What is done to inputs for the target. `shift_images` for fixmatch, nothing for
                uda, if not given.
            strong: What is done to inputs that are to have the same answer; `distort_images` if
                not given.

        Returns:
            The loss, with a gradient, and the share of the inputs that count.
        """
        import torch
        from torch.nn.functional import cross_entropy, nll_loss

        from slipstream.recipes.pseudo_transfer.augmentation import distort_images, shift_images

        if not self.augmented:
            logs = model(inputs).log_softmax(-1)
            if self.kind == "entropy":
                return Unlabelled(-(logs.exp() * logs).sum(-1).mean(), 1.0)
            return Unlabelled(nll_loss(logs, logs.detach().argmax(-1)), 1.0)
        randomness = torch.Generator(inputs.device).manual_seed(seed)
        weak = weak or (shift_images if self.kind == "fixmatch" else None)
        with torch.no_grad():
            logits = model(weak(inputs, randomness) if weak else inputs).detach()
            top = logits.softmax(-1).amax(-1)
        sure = top >= self.confidence if self.kind == "fixmatch" else top > self.confidence
        logs = model((strong or distort_images)(inputs, randomness)).log_softmax(-1)
        each = cross_entropy(logs, self._target(logits), reduction="none")
        return Unlabelled((each * sure).mean(), float(sure.float().mean()))

    def _target(self, logits: "Tensor") -> "Tensor":
        if self.kind == "fixmatch":
            return logits.argmax(-1)
        return (logits / self.temperature).softmax(-1)
