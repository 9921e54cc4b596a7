"""What a subspace adds to the run folder of its midpoint.

RUN/corners/0.safetensors   the corners, ordinary weights; written when the training is finished
RUN/subspace.json           plan, losses and cost; written last: it says that the corners are whole
RUN/unfinished.pt           the state to resume from, while the training is not finished
"""

import json
from dataclasses import asdict
from pathlib import Path

from slipstream.evaluation import Task, takes_task
from slipstream.landscape.span import Span
from slipstream.recipes.subspaces.plan import SubspacePlan
from slipstream.recipes.subspaces.subspace import Subspace
from slipstream.storage.reading import parsing
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


@takes_task
def load_subspace(path: str | Path, task: Task | None = None) -> Subspace:
    """Read a finished subspace from its run folder.

    Args:
        path: The run folder that `train_subspace` recorded.
        task: For models with BatchNorm: the model, and training batches for its statistics.

    Returns:
        The subspace. Without a task, only the corners of a model with BatchNorm can be used.

    Raises:
        FileNotFoundError: If there is no finished subspace.
        ValueError: If its description is damaged.
    """
    folder = Path(path)
    if not is_finished(folder):
        why = (
            "its training is not finished: resume it"
            if (folder / UNFINISHED).is_file()
            else f"it has no {DESCRIPTION}"
        )
        raise FileNotFoundError(f"{folder} holds no subspace: {why}.")
    return read(folder, task)


def read(folder: Path, task: Task | None = None) -> Subspace:
    """Read a finished subspace, whose points the task calibrates."""
    with parsing(folder / DESCRIPTION, "subspace"):
        described = json.loads((folder / DESCRIPTION).read_bytes())
        given = described["plan"]
        plan = SubspacePlan(**{**given, "descent": TrainingPlan.from_dict(given["descent"])})
        corners = tuple(map_tensors(corner_file(folder, n)) for n in range(plan.corners))
        return Subspace(
            plan,
            Span(plan.family, corners, task),
            tuple(described["losses"]),
            described["cosine"],
            described["steps"],
            described["seconds"],
        )


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a whole subspace."""
    return (folder / DESCRIPTION).is_file()


def corner_file(folder: Path, number: int) -> Path:
    """Return the file of a corner."""
    return folder / CORNERS / f"{number}.safetensors"
