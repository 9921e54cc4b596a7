"""A run in two values per weight: its modes, what they explain, and what the modelled weights know.

Shows: `fit_modes` and its controls, the modelled weights at the end, and the file they take.
Takes: a few seconds on one core of a laptop; no download, no GPU.

    python examples/modes_of_a_run.py
"""

import tempfile
from pathlib import Path

from slipstream import Trajectory, evaluate, fit_modes
from slipstream.modes import compare_modes
from slipstream.named_task import NamedTask
from slipstream.training import TrainingPlan, record_training

SETUP = NamedTask("mlp", "digits", width=64, options={"hidden_layers": 2})
MODES = 5


def main() -> None:
    """Train and record, decompose, and evaluate what is left."""
    experiment = SETUP.build()
    with tempfile.TemporaryDirectory() as folder:
        record_training(
            SETUP.build(), TrainingPlan(epochs=20), run_folder=f"{folder}/run", keep="every:5"
        )
        run = Trajectory.open(f"{folder}/run")
        print(compare_modes(run, modes=MODES, grouping="k-means"))
        modes = fit_modes(run, modes=MODES, grouping="k-means", reference="component")
        modes.save(f"{folder}/modes.safetensors", samples=False)
        size = Path(f"{folder}/modes.safetensors").stat().st_size
        snapshot = sum(value.nbytes for value in run[-1].weights.values())
        print(f"\n{len(run)} snapshots in the size of {size / snapshot:.1f}")
        for name, weights in [
            ("recorded", run[-1].weights),
            ("modelled", modes.weights_at(run[-1].step)),
        ]:
            metrics = evaluate(
                experiment.model, experiment.measured, weights=weights, data=experiment.test
            )
            print(f"{name} weights: accuracy {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
