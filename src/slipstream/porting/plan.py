"""How a fine-tune is ported, as plain data."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from slipstream.storage.plan_fields import option
from slipstream.transfer.plan import SignWeights, TransferPlan

Coordinates = Literal["identity", "weights", "activations", "procrustes", "fgmt"]
Signs = Literal["none", "mask", "signed", "fitted"]
PortMethod = Literal[
    "auto",
    "untouched",
    "output-bias",
    "few-shot",
    "identity",
    "weights",
    "activations",
    "procrustes",
    "fgmt",
    "sign-mask",
    "weights-mask",
    "activations-mask",
    "procrustes-mask",
    "fgmt-mask",
    "identity-signed",
    "weights-signed",
    "activations-signed",
    "fgmt-signed",
]


@dataclass(frozen=True)
class PortPlan:
    """How a fine-tune is carried from one base model to another.

    A method aligns the displacement `fine_tuned - from_base` to the other base's neurons, and may
    then use the other base's gradient: `-mask` keeps the entries that step against it,
    `-signed` carries the displacement in stages, each beside a step against the gradient's sign.
    `few-shot` and `output-bias` fit the labels alone, and `untouched` leaves the base as it is.
    """

    method: PortMethod = option(
        "auto",
        "How the displacement is aligned to the other base; auto measures on validation data, and "
        "chooses, or leaves the base untouched. identity: as it is. -mask keeps what the other "
        "base's gradient agrees with, -signed steps beside that gradient.",
    )
    strengths: tuple[float, ...] = option(
        (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), "A strength to try on validation; repeatable."
    )
    stages: int = option(10, "Gradients along the path: more are better and slower.")
    batches_per_gradient: int = option(1, "Training batches per gradient.")
    batchnorm_batches: int = option(
        2, "Training batches for BatchNorm's statistics, before each gradient and measurement."
    )
    exclude: tuple[str, ...] = option(
        (), "Tensors that stay the other base's own: a pattern, such as 'head.*'; repeatable."
    )
    signs: SignWeights = field(default_factory=SignWeights)
    rates: tuple[float, ...] = option(
        (0.003, 0.001, 0.0003), "A learning rate of few-shot fine-tuning to try; repeatable."
    )
    labels: int | None = option(
        None,
        "Labelled training examples to use, in whole batches; without validation data a quarter of "
        "the batches is kept to choose by.",
        shown="all",
    )
    margin: float = option(
        1.0,
        "Standard errors by which auto's choice must be better than the untouched base on "
        "validation; otherwise the base stays as it is.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "strengths", tuple(self.strengths))
        if self.method not in get_args(PortMethod):
            listed = ", ".join(get_args(PortMethod))
            raise ValueError(f"method must be one of {listed}; got {self.method!r}.")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"strengths must be numbers above 0, got {self.strengths}.")
        object.__setattr__(self, "rates", tuple(self.rates))
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates must be numbers above 0, got {self.rates}.")
        if self.labels is not None and self.labels < 1:
            raise ValueError(f"labels must be at least 1, got {self.labels}.")
        if not self.margin >= 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}.")
        self.transfer()  # checks what both plans have

    def transfer(self) -> TransferPlan:
        """Return the plan of the learning transfer that `fgmt` is made of."""
        return TransferPlan(
            "fgmt",
            stages=self.stages,
            batches_per_gradient=self.batches_per_gradient,
            batchnorm_batches=self.batchnorm_batches,
            exclude=self.exclude,
            signs=self.signs,
        )

    def gradients(self, methods: Collection[PortMethod]) -> int:
        """Return how many gradients some methods take together, a stage's batches counting as one.

        The fit of output biases is not counted: its gradients are those of the last layer.

        Example:
            >>> PortPlan(stages=10).gradients(["identity", "fgmt", "fgmt-signed"])
            30
        """
        parts = [parts_of(method) for method in methods]
        matched = 2 * any(coordinates == "fgmt" for coordinates, _ in parts)
        masked = any(signs == "mask" for _, signs in parts)
        signed = sum(signs == "signed" for _, signs in parts)
        trained = 3 * len(self.rates) * ("few-shot" in methods)
        return self.stages * (matched + masked + signed + trained)


def parts_of(method: PortMethod) -> tuple[Coordinates, Signs]:
    """Return what a method is composed of: how coordinates are matched, and what signs do.

    Example:
        >>> parts_of("sign-mask"), parts_of("fgmt-signed"), parts_of("few-shot")
        (('identity', 'mask'), ('fgmt', 'signed'), ('identity', 'fitted'))
    """
    if method in ("few-shot", "output-bias"):
        return "identity", "fitted"
    name, _, suffix = method.partition("-")
    signs: Signs = "mask" if suffix == "mask" else "signed" if suffix == "signed" else "none"
    for coordinates in get_args(Coordinates):
        if name == coordinates:
            return coordinates, signs
    return "identity", signs
