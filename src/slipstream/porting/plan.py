"""How a fine-tune is ported, as plain data."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from slipstream.storage.plan_fields import option
from slipstream.transfer.plan import SignWeights, TransferPlan

Coordinates = Literal[
    "identity", "weights", "activations", "procrustes", "rotation", "fgmt", "bico"
]
Signs = Literal["none", "mask", "signed", "fitted"]
PortStep = Literal[
    "untouched",
    "output-bias",
    "few-shot",
    "function",
    "function-outputs",
    "distil",
    "distil-outputs",
    "identity",
    "weights",
    "activations",
    "procrustes",
    "rotation",
    "fgmt",
    "bico",
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
PortMethod = str  # `auto`, or steps joined by +, such as `weights+few-shot`
FUNCTION: tuple[PortStep, ...] = ("function", "function-outputs")  # of the last layers
DISTILLED: tuple[PortStep, ...] = ("distil", "distil-outputs")
TRAINED: tuple[PortStep, ...] = ("few-shot", *DISTILLED)
FITTED: tuple[PortStep, ...] = ("output-bias", *TRAINED, *FUNCTION)
# What learns from no labels: unlabelled inputs at most.
UNLABELLED: tuple[PortStep, ...] = (
    *("untouched", "identity", "weights", "activations", "procrustes", "rotation"),
    *(*FUNCTION, *DISTILLED),
)
_PER_STAGE = 3  # steps of few-shot fine-tuning and of distillation, as `fgmt-signed` has gradients


@dataclass(frozen=True)
class PortPlan:
    """How a fine-tune is carried from one base model to another.

    A method is a step, or several joined by `+`, each of which begins where the one before ended:
    `weights+few-shot`. A step aligns the displacement `fine_tuned - from_base` to the other base's
    neurons, and may then use the other base's gradient: `-mask` keeps the entries that step against
    it, `-signed` carries the displacement in stages, each beside a step against the gradient's
    sign. Or it carries the change of the outputs: `function` by the last layers alone, in closed
    form, `distil` by gradients, both on unlabelled inputs; with `-outputs`, the fine-tune's outputs
    themselves. `few-shot` and `output-bias` fit the labels alone, and `untouched` leaves the base
    as it is.
    """

    method: PortMethod = option(
        "auto",
        "How the fine-tune is carried; auto measures on validation data, and chooses, or leaves "
        "the base untouched. identity, weights, activations, procrustes, rotation, fgmt and bico "
        "align the displacement; -mask keeps what the other base's gradient agrees with, -signed "
        "steps beside that gradient. function and distil carry the change of outputs by unlabelled "
        "inputs, with -outputs those of the fine-tune themselves; few-shot and output-bias learn "
        "from labels alone. Steps are joined by +: weights+few-shot.",
    )
    strengths: tuple[float, ...] = option(
        (0.01, 0.03, 0.1, 0.2, 0.35, 0.6, 1.0, 1.4, 2.0, 3.0),
        "A strength to try on validation; repeatable.",
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
        (0.003, 0.001, 0.0003),
        "A learning rate of few-shot fine-tuning and of distillation to try; repeatable. auto "
        "lowers them where little of the error is left.",
    )
    training_steps: int | None = option(
        None,
        "Steps of few-shot fine-tuning and of distillation, at each rate.",
        shown="three per stage",
    )
    labels: int | None = option(
        None,
        "Labelled training examples to use, in whole batches; without validation data a quarter of "
        "the batches is kept to choose by.",
        shown="all",
    )
    unlabelled: int | None = option(
        None,
        "Unlabelled examples to use, in whole batches: of the data's own, or training inputs whose "
        "labels are not looked at.",
        shown="all, or the labelled ones' inputs",
    )
    budget: int | None = option(
        None,
        "Gradients that may be taken in all, those of methods that are not chosen included; 0 "
        "leaves what needs none.",
        shown="what the methods take by themselves",
    )
    margin: float = option(
        1.0,
        "Standard errors by which auto's choice must be better than the untouched base on "
        "validation; otherwise the base stays as it is. More, if many methods were tried.",
    )

    def __post_init__(self) -> None:
        for name in ("strengths", "rates"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be numbers above 0, got {getattr(self, name)}.")
        if self.method != "auto":
            for step in self.method.split("+"):
                if step not in get_args(PortStep):
                    listed = ", ".join(("auto", *get_args(PortStep)))
                    raise ValueError(
                        f"method must be one of {listed}; or several joined by +, such as "
                        f"weights+few-shot; got {self.method!r}."
                    )
        for name in ("training_steps", "labels", "unlabelled", "budget"):
            value, least = getattr(self, name), int(name != "budget")
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if not self.margin >= 0:
            raise ValueError(f"margin must be at least 0, got {self.margin}.")
        self.transfer()  # checks what both plans have

    @property
    def steps(self) -> tuple[PortStep, ...]:
        """What the method is composed of; nothing of `auto`."""
        return () if self.method == "auto" else steps_of(self.method)

    @property
    def descent(self) -> int:
        """Steps of few-shot fine-tuning and of distillation, at each rate."""
        return self.training_steps or _PER_STAGE * self.stages

    def within_budget(self) -> "PortPlan":
        """Return the plan with as many stages as the budget is enough for.

        Returns:
            The plan; as it is without a budget, and that of `auto`, which divides the budget.

        Raises:
            ValueError: If the budget is not enough for one stage.
        """
        if self.budget is None or self.method == "auto":
            return self
        least = replace(self, stages=1, training_steps=None).gradients([self.method])
        if least > self.budget:
            raise ValueError(
                f"budget={self.budget} is less than the {least} gradients that {self.method} takes "
                "with one stage: give a larger budget, or fewer rates."
            )
        return replace(self, stages=self.budget // least) if least else self

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
        steps = [step for method in methods if method != "auto" for step in steps_of(method)]
        parts = [parts_of(step) for step in steps]
        matched = 2 * sum(any(c == kind for c, _ in parts) for kind in ("fgmt", "bico"))
        masked = any(signs == "mask" for _, signs in parts)
        signed = sum(signs == "signed" for _, signs in parts)
        trained = len(self.rates) * sum(step in TRAINED for step in steps)
        return self.stages * (matched + masked + signed) + self.descent * trained


def steps_of(method: PortMethod) -> tuple[PortStep, ...]:
    """Return the steps of a method.

    Example:
        >>> steps_of("weights+few-shot")
        ('weights', 'few-shot')
    """
    return tuple(method.split("+"))  # type: ignore[arg-type]


def parts_of(step: PortStep) -> tuple[Coordinates, Signs]:
    """Return what a step is composed of: how coordinates are matched, and what signs do.

    Example:
        >>> parts_of("sign-mask"), parts_of("fgmt-signed"), parts_of("few-shot")
        (('identity', 'mask'), ('fgmt', 'signed'), ('identity', 'fitted'))
    """
    if step in FITTED:
        return "identity", "fitted"
    name, _, suffix = step.partition("-")
    signs: Signs = "mask" if suffix == "mask" else "signed" if suffix == "signed" else "none"
    for coordinates in get_args(Coordinates):
        if name == coordinates:
            return coordinates, signs
    return "identity", signs
