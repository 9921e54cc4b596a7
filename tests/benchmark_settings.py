"""The smallest setting of every benchmark: `python benchmark_settings.py SCRIPT [ARGUMENT ...]`.

Data sets, networks and trainings are cut down in this process; the script itself runs as it is. A
name of version 0.1 that a script still uses is an error.
"""

import importlib
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from torch import nn

EPOCHS = 3
NARROW = 16, 0.0625  # units of an MLP, share of a convolutional network's channels
DIGITS = 200, 60  # examples for training and for the test


def at_most(cls, **most):
    """Cut fields of a plan as soon as it is made."""
    check = getattr(cls, "__post_init__", lambda self: None)

    def cut(self):
        check(self)
        for name, value in most.items():
            if getattr(self, name) is not None and getattr(self, name) > value:
                object.__setattr__(self, name, value)

    cls.__post_init__ = cut


def narrow(setup):
    """Cut the width of a network."""
    if setup.width is not None:
        width = min(setup.width, NARROW[0] if setup.width > 1 else NARROW[1])
        object.__setattr__(setup, "width", width)


def few_digits(read):
    """Read the first examples of the digits."""
    return lambda: tuple(
        type(part)(part.images[:count], part.labels[:count])
        for part, count in zip(read(), DIGITS, strict=True)
    )


def shrink(epochs):
    """Cut the digits, all networks that are named, and all trainings."""
    from slipstream.named_task import NamedTask
    from slipstream.testbed import datasets
    from slipstream.training import TrainingPlan

    at_most(TrainingPlan, epochs=epochs)
    check = NamedTask.__post_init__
    NamedTask.__post_init__ = lambda self: (check(self), narrow(self))[0]
    datasets._digits = few_digits(datasets._digits)  # there is no folder to cut


def complexity(script):
    script.FREQUENCIES, script.SHARES = (0.25, 1.0), (0.0, 0.6)


def compare(script):
    script.STEPS = 16


def compression(script):
    script.TURNS = 1


def cost(script):
    script.STAGES = (2,)
    at_most(script.NamedTask, batch_size=8)  # it needs 30 batches
    script.MEMORY = {"MLP": (*script.MEMORY["MLP"][:3], (1,))}


def embedded(script):
    at_most(script.Growth, warm_up=2, every=1)


def gpu(script):
    importlib.import_module("cost").STAGES = (2,)
    script.TESTS = (str(Path(__file__).parent / "transfer"), "-m", "gpu")
    script.TRANSFERRED = ("Conv8",)
    script.PAIRS, script.BUDGETS, script.LADDER = 2, (2, 3), (4,)
    script.HIDDEN, script.LAYERS = 64, 1
    script.IMAGE, script.WIDTHS, script.DEPTHS = 32, (4, 8, 16, 32), (1, 1, 1, 1)
    script.LOOPS = {"MLP": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 8, 4, 2)}


def iterand(script):
    cases = script.cases
    rates = {"sgd": (0.1,), "scores": (1.0,)}
    small = {"epochs": EPOCHS, "widths": (8,), "reference": 8, "choosing": 1, "rates": rates}
    script.cases = lambda *folders: {n: replace(c, **small) for n, c in cases(*folders).items()}


def landscape(script):
    grid, plane = script.PlaneGrid, script.beside_plain
    script.PlaneGrid = lambda points: grid(points=3)
    script.beside_plain = lambda *given: plane(*given[:4], 3)


def meta_neuron(script):
    for name in ("LEARNED_ON", "THEN_ON", "CHOSEN_ON", "JUDGED_ON"):
        form = replace(getattr(script, name), shots=1, queries=1, tasks=2, batches=1)
        setattr(script, name, form)
    script.RATES = (0.1,)


def meta_ticket(script):
    from slipstream.testbed import tasks

    script.RATES = {"weights": (1e-3,), "scores": (3.0,)}
    script.INNER_RATES, script.BATCHES = (0.4,), 3
    script.CHOOSING_TASKS = tasks.TEST_TASKS = tasks.JUDGED_TOGETHER


def modes(script):
    measured = script.measured
    script.PLAIN = 200
    script.resnet18 = lambda: importlib.import_module("slipstream.testbed").resnet18(width=0.0625)
    script.measured = lambda part, folder, million, updates: measured(part, folder, 4000, 40)


def modes_accuracy(script):
    script.MODES = (2,)


def operators(script):
    script.ROWS = {name: script.ROWS[name] for name in ("random", "matched", "single")}
    script.ORDER = [(row, rank) for row in script.ROWS for rank in (0, script.RANK)]
    script.FUNCTIONS = script.BATCH = script.TESTED = 4
    script.INPUTS = 8


def porting(script):
    networks = importlib.import_module("porting_cases")
    networks.FEW, networks.CONTEXT, networks.SEEN = 1, 16, 100
    script.BUDGET = 2
    script.PLANS = {name: replace(plan, stages=2) for name, plan in script.PLANS.items()}
    found = script.rivals
    script.rivals = lambda count: {n: replace(p, rates=(1e-3,)) for n, p in found(count).items()}


def pseudo_transfer(script):
    script.TARGET_STEPS, script.PRETRAIN, script.LAMBDAS = 2, (1, 2, 8), (0.1,)
    script.CHOOSING_SEEDS = script.GENERATOR_EPOCHS = 1


def real_networks(script):
    from made_up_networks import made_up_molecules

    script.molecules = lambda: made_up_molecules(script.Molecule)
    script.UNLABELLED = script.TEST = 8
    script.BUDGET = 2
    script.PLANS = {name: replace(plan, stages=2) for name, plan in script.PLANS.items()}
    script.RATES = {name: rates[:1] for name, rates in script.RATES.items()}


def recording(script):
    cases, resnet18 = script.cases, script.resnet18
    script.resnet18 = lambda: resnet18(width=0.0625)
    script.cases = lambda quick: [replace(case, every=4, pairs=2) for case in cases(quick)]


def report(script):
    script.SNAPSHOTS, script.RUNS, script.CLICKS, script.SECONDS = 5, 3, 2, 0.1


def routed_pretraining(script):
    script.EACH, script.BATCH, script.SHOTS, script.DRAWS, script.TESTED = 40, 20, 2, 1, 50
    script.ALPHABETS = ("Greek", "Latin")
    at_most(script.RoutedPlan, clusters=2)


def symmetry(script):
    for configuration in script.LARGE.values():
        configuration["num_hidden_layers"] = 1


def transfer(script):
    parts = importlib.import_module("transfer_cases")
    least = {"budgets": (2, 5), "ladder": (6,), "held": 1, "test": 1}
    found = parts.cases
    script.cases = lambda *files: {n: replace(c, **least) for n, c in found(*files).items()}
    script.MEMBERS, script.CARRY, script.FURTHER = 2, 2, 2
    at_most(parts.Text, count=2)


def training_time(script):
    script.SHARES, script.MAX_STEPS = (0.3,), 20


def main():
    """Run a benchmark, cut down."""
    name = sys.argv.pop(1)
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path[:0] = [str(folder)]
    warnings.filterwarnings(
        "error", category=DeprecationWarning, module=rf"slipstream|{name}|.*_cases|common|runpy"
    )
    # Averages, modes and compressed runs need some snapshots.
    shrink(16 if name in ("compression", "modes_accuracy") else EPOCHS)
    script = importlib.import_module(name)
    sys.argv[0] = script.__file__
    globals().get(name, lambda script: None)(script)
    script.main()


if __name__ == "__main__":
    main()
