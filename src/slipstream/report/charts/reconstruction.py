"""How far weights are made of training examples, and what was read from them."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from slipstream.dynamics import MarginProgress
from slipstream.recipes import Pictures
from slipstream.report.charts.subject import Subject
from slipstream.report.colour_scale import colour_scale
from slipstream.report.content import HeatMap, Lines, Series, plain
from slipstream.report.palette import BLUE, VERMILLION

_BANDS = {
    "train": "training data",
    "train_found": "found",
    "held_out": "held out",
    "held_out_found": "found for it",
}


def margin_charts(found: MarginProgress) -> list[Lines]:
    """Return the residuals and the least margin along a run."""
    residuals = [Series("largest margin", found.steps, plain(found.residuals), BLUE)]
    if found.decay_residuals.isfinite().any():
        values = plain(found.decay_residuals)
        residuals.append(Series("balance of weight decay", found.steps, values, VERMILLION))
    reading = "0 where the weights are a sum of the training examples' gradients."
    above = all(v is not None and v > 0 for series in residuals for v in series.y)
    least = [Series("", found.steps, plain(found.normalised), BLUE)]
    return [
        Lines("residual", "Residual", reading, "step", "relative", residuals, log=above),
        Lines("margin", "Least margin", "Over |theta| to the network's degree.", "step", "", least),
    ]


def pictures_chart(found: Pictures, subject: Subject) -> HeatMap | None:
    """Return images above the candidates that are most like them; None if they are no images."""
    if found.train.dim() < 3:
        return None
    bands, rows = [], []
    wide = max(len(found.train), len(found.held_out))
    for name, label in _BANDS.items():
        images = _grey(getattr(found, name))
        band = pad(torch.cat(list(pad(images, (0, 1), value=torch.nan)), dim=1), (0, 0, 0, 1))
        band[-1] = torch.nan
        bands.append(pad(band, (0, wide * (images.shape[-1] + 1) - band.shape[1]), value=torch.nan))
        rows += [label] + [""] * (len(band) - 1)
    values = torch.cat(bands)
    return HeatMap(
        "pictures",
        subject.titled("What was read from the weights"),
        "Below each training image, the most alike first, what was found; then the same of images "
        "that were never trained on.",
        "pixel",
        "",
        colour_scale("brightness", values),
        list(range(values.shape[1])),
        rows,
        plain(values),
        square=True,
        run=subject.run,
    )


def _grey(images: Tensor) -> Tensor:
    """(n, height, width): the mean of the channels."""
    return images.float() if images.dim() == 3 else images.float().flatten(1, -3).mean(1)
