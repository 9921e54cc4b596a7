"""How the loss bends along a run."""

from slipstream.landscape import CurvatureAlong
from slipstream.report.content import Lines, Series, plain
from slipstream.report.palette import BLUE, VERMILLION

_CHARTS = (  # title, unit, and for each line its name, value, error and colour
    ("Loss", "loss", [("", "loss", None, BLUE)]),
    ("Norm of the gradient", "norm", [("", "gradient_norm", None, BLUE)]),
    (
        "Ends of the Hessian's spectrum",
        "eigenvalue",
        [
            ("largest", "largest", "largest_residual", BLUE),
            ("lowest", "lowest", "lowest_residual", VERMILLION),
        ],
    ),
    ("Trace of the Hessian", "trace", [("", "trace", "trace_error", BLUE)]),
    ("Sharpness: rise of the loss in a ball", "rise", [("", "sharpness", None, BLUE)]),
    ("Gradient noise scale", "examples", [("", "noise_scale", None, BLUE)]),
)
_ERRORS = {
    "trace_error": "The band is the standard error of the estimate.",
    "largest_residual": "The bands are the residuals of the eigenpairs.",
}


def curvature_charts(found: CurvatureAlong) -> list[Lines]:
    """Return loss and gradient, eigenvalues, trace, sharpness and noise scale along a run."""
    charts = []
    for title, unit, parts in _CHARTS:
        series = []
        for name, key, error, colour in parts:
            values = found.values[key]
            spread = found.values[error] if error else None
            band = [] if spread is None else [plain(values - spread), plain(values + spread)]
            series.append(Series(name, found.steps, plain(values), colour, *band))
        reading = next((text for key, text in _ERRORS.items() if key == parts[0][2]), "")
        known = [value for line in series for value in line.y if value is not None]
        log = unit == "examples" and bool(known) and min(known) > 0
        key = title.split(" ")[0].lower()
        charts.append(Lines(key, title, reading, "step", unit, series, log=log))
    return charts
