"""What a subspace adds to the run folder of its midpoint.

RUN/corners/0.safetensors   the corners, ordinary weights; written when the training is finished
RUN/subspace.json           plan, losses and cost; written last: it says that the corners are whole
RUN/unfinished.pt           the state to go on from, while the training is not finished
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from slipstream.evaluation import Batch, Loss
from slipstream.landscape.span import Calibration, Span
from slipstream.recipes.subspaces.subspace import Subspace, SubspacePlan
from slipstream.storage.tensor_file import map_tensors, tensor_chunks
from slipstream.storage.writing import write_whole
from slipstream.training.plan import TrainingPlan
from slipstream.trajectory import declare_companions

DESCRIPTION, CORNERS, UNFINISHED = "subspace.json", "corners", "unfinished.pt"


def save_subspace(subspace: Subspace, path: Path) -> None:
    """Write the corners, then the description, into a run folder."""
    declare_companions(path, DESCRIPTION, f"{CORNERS}/*.safetensors")
    (path / CORNERS).mkdir(parents=True, exist_ok=True)
    for number, corner in enumerate(subspace.corners):
        on_cpu = {name: value.cpu() for name, value in corner.items()}
        write_whole(corner_file(path, number), tensor_chunks(on_cpu))
    described = {
        "plan": asdict(subspace.plan),
        "losses": subspace.losses,
        "cosine": subspace.cosine,
        "steps": subspace.steps,
        "seconds": subspace.seconds,
    }
    write_whole(path / DESCRIPTION, [json.dumps(described, indent=1).encode()])


def load_subspace(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    data: Iterable[Batch] | None = None,
) -> Subspace:
    """Read a finished subspace from its run folder.

    Args:
        path: The run folder that `train_subspace` recorded.
        model: For models with BatchNorm: what the weights belong to.
        loss: For models with BatchNorm: runs the model on a batch.
        data: For models with BatchNorm: training batches to recalibrate its statistics on.

    Returns:
        The subspace. Without `model`, `loss` and `data`, only the corners of a model with
        BatchNorm can be used.

    Raises:
        FileNotFoundError: If there is no finished subspace.
        ValueError: If its description is damaged, or only some of `model`, `loss`, `data` are
            given.
    """
    given = (model, loss, data)
    if None in given and any(value is not None for value in given):
        raise ValueError("model, loss and data go together: give all three, or none.")
    folder = Path(path)
    if not is_finished(folder):
        why = (
            "its training is not finished: go on with resume=True"
            if (folder / UNFINISHED).is_file()
            else f"it has no {DESCRIPTION}"
        )
        raise FileNotFoundError(f"{folder} holds no subspace: {why}.")
    if model is None or loss is None or data is None:
        return read(folder)
    return read(folder, calibration=Calibration(model, loss, data))


def read(folder: Path, *, calibration: Calibration | None = None) -> Subspace:
    """Read a finished subspace."""
    try:
        described = json.loads((folder / DESCRIPTION).read_bytes())
        given = described["plan"]
        plan = SubspacePlan(**{**given, "descent": TrainingPlan.from_dict(given["descent"])})
        corners = tuple(map_tensors(corner_file(folder, n)) for n in range(plan.corners))
        return Subspace(
            plan,
            Span(plan.family, corners, calibration),
            tuple(described["losses"]),
            described["cosine"],
            described["steps"],
            described["seconds"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"The subspace in {folder} cannot be read: {error}.") from error


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a whole subspace."""
    return (folder / DESCRIPTION).is_file()


def corner_file(folder: Path, number: int) -> Path:
    """Return where a corner lies."""
    return folder / CORNERS / f"{number}.safetensors"
