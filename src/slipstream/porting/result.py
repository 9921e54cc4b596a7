"""What porting returns: the weights, what was tried, and a report layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
    strength: float  # of the last step
    loss: float
    statistics: str = "carried"  # of BatchNorm: carried like weights, or estimated on the data
    rate: float | None = None  # the learning rate of a last step that trains
    gradients: int = 0  # that the last step took
    before: "PortCandidate | None" = None  # what the last step begins after

    @property
    def name(self) -> str:
        """What it is, in words."""
        earlier = "" if self.before is None else f"{self.before.name}, then "
        rate = "" if self.rate is None else f" at rate {self.rate:g}"
        strength = f" at strength {self.strength:g}" if self.strength not in (0, 1) else ""
        return f"{earlier}{self.method.rpartition('+')[2]}{rate}{strength}"


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
    margin: float | None  # how much lower than `loss_before` auto's choice had to be
    explanation: tuple[str, ...]  # what was chosen, why, and what it took: a sentence each
    gradient_evaluations: int  # that were taken in all, a stage's batches counting as one
    excluded: tuple[str, ...]
    warnings: tuple[str, ...]
    weights: dict[str, Tensor] = field(repr=False, default_factory=dict)  # empty if in a file

    @property
    def reason(self) -> str:
        """Why this was chosen, in a sentence."""
        return self.explanation[1]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain data."""
        held = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "weights"
        }
        # JSON has no infinity: it is the loss of what diverged.
        held |= {n: None for n, v in held.items() if isinstance(v, float) and not math.isfinite(v)}
        return {
            **held,
            "reason": self.reason,
            "plan": asdict(self.plan),
            "layers": [{**asdict(layer), "gain": layer.gain} for layer in self.layers],
            "candidates": [
                {**asdict(c), "loss": c.loss if math.isfinite(c.loss) else None}
                for c in self.candidates
            ],
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
        return "\n".join([*_table(rows), *_table(self._tried()), *self.summary()])

    def _tried(self) -> list[tuple[str, ...]]:
        """All validation losses: a row for each method, a column for each strength."""
        if not self.candidates:
            return []
        strengths = sorted({c.strength for c in self.candidates})
        losses: dict[str, dict[float, float]] = {}
        for one in self.candidates:
            estimated = ", BatchNorm estimated" if one.statistics == "estimated" else ""
            row = replace(one, strength=1.0).name + estimated
            losses.setdefault(row, {})[one.strength] = one.loss
        head = ("validation loss at strength", *(f"{strength:g}" for strength in strengths))
        rows = [
            (name, *(f"{found[s]:.4f}" if s in found else "" for s in strengths))
            for name, found in losses.items()
        ]
        return [head, *rows]

    def summary(self) -> list[str]:
        """Return what happened, in sentences."""
        lines = [
            f"{self.regime} (cosine of the bases {self.alignment:.3f}): "
            f"{self.method} at strength {self.strength:g}",
            *self.explanation,
        ]
        if self.loss_before is not None:
            lines.append(
                f"validation loss {self.loss_before:.4f} before, {self.loss_identity:.4f} with the "
                f"plain displacement, {self.loss_after:.4f} after"
            )
        if self.excluded:
            lines.append(f"kept as they were: {', '.join(self.excluded)}")
        return lines + [f"warning: {warning}" for warning in self.warnings]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with their first cells to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]
