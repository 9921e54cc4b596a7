"""What porting returns: the weights, what was tried, and a report layer by layer."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from slipstream.porting.plan import PortMethod, PortPlan
from slipstream.porting.problem import Regime


@dataclass(frozen=True)
class PortedLayer:
    """What became of one layer's displacement."""

    name: str
    displacement: float  # |A* - A|
    relative: float  # the same over |A|
    kept: float  # what was added to B, projected on the displacement aligned to B: 1 is all
    alignment: float  # cosine between the bases as they are
    matched: float  # the same after the method has aligned A to B

    @property
    def gain(self) -> float:
        """What the method's coordinates add to the alignment."""
        return self.matched - self.alignment


@dataclass(frozen=True)
class PortCandidate:
    """A method at a strength, measured on the validation data."""

    method: PortMethod
    strength: float
    loss: float
    statistics: str = "carried"  # of BatchNorm: carried like weights, or estimated on the data


@dataclass(frozen=True)
class PortResult:
    """Result of `port_fine_tune`."""

    plan: PortPlan
    method: PortMethod  # never `auto`
    strength: float
    regime: Regime
    alignment: float  # cosine between the bases, over their matrices
    layers: tuple[PortedLayer, ...]
    candidates: tuple[PortCandidate, ...]  # all that was measured; empty without validation data
    loss_before: float | None  # of the other base, on the validation data
    loss_identity: float | None  # of the displacement as it is, at strength 1
    loss_after: float | None
    excluded: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: dict[str, Tensor] = field(repr=False, default_factory=dict)  # empty if in a file

    @property
    def gradient_evaluations(self) -> int:
        """Gradients that were taken in all, a stage's batches counting as one."""
        return self.plan.gradients({self.method, *(c.method for c in self.candidates)})

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        held = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "weights"
        }
        return {
            **held,
            "gradient_evaluations": self.gradient_evaluations,
            "plan": asdict(self.plan),
            "layers": [{**asdict(layer), "gain": layer.gain} for layer in self.layers],
            "candidates": [asdict(candidate) for candidate in self.candidates],
        }

    def __str__(self) -> str:
        rows = [("layer", "moved", "kept", "alignment", "gain")]
        rows += [
            (
                layer.name,
                f"{layer.relative:.2%}",
                f"{layer.kept:.2f}",
                f"{layer.alignment:.3f}",
                f"{layer.gain:+.3f}",
            )
            for layer in self.layers
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
                ]
            )
            for row in rows
        ]
        return "\n".join([*lines, *self.summary()])

    def summary(self) -> list[str]:
        """Return what happened, in sentences."""
        lines = [
            f"{self.regime} (cosine of the bases {self.alignment:.3f}): "
            f"{self.method} at strength {self.strength:g}"
        ]
        if self.loss_before is not None:
            lines.append(
                f"validation loss {self.loss_before:.4f} before, {self.loss_identity:.4f} with the "
                f"plain displacement, {self.loss_after:.4f} after"
            )
        if self.excluded:
            lines.append(f"kept as they were: {', '.join(self.excluded)}")
        return lines + [f"warning: {warning}" for warning in self.warnings]
