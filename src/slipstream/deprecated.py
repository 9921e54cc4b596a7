"""Where modules and names of version 0.1 are now: they work, with a `DeprecationWarning`."""

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Modules of 0.1 that users import, or whose names their own files hold, and where they are now.
MODULES = {
    "slipstream.dynamics.descent": "slipstream.dynamics.sgd",
    "slipstream.dynamics.linearisation": "slipstream.dynamics.linearised_training",
    "slipstream.evaluation.adaptation": "slipstream.recipes.few_shot",
    "slipstream.evaluation.borrowing": "slipstream.evaluation.swapped_weights",
    "slipstream.evaluation.means": "slipstream.evaluation.metrics",
    "slipstream.evaluation.task_layers": "slipstream.recipes.few_shot.task_layers",
    "slipstream.integrations.federated_training": "slipstream.federated.training",
    "slipstream.integrations.flower": "slipstream.federated.flower",
    "slipstream.integrations.flower_api": "slipstream.federated.flower_api",
    "slipstream.integrations.in_process": "slipstream.federated.in_process",
    "slipstream.landscape.checkpoint": "slipstream.storage.resumable_state",
    "slipstream.landscape.directions": "slipstream.landscape.plane",
    "slipstream.landscape.storage": "slipstream.landscape.point_store",
    "slipstream.matching.low_rank": "slipstream.matching.gradients",
    "slipstream.matching.similarity": "slipstream.matching.objective",
    "slipstream.matching.weights": "slipstream.matching.tensors",
    "slipstream.modes.average_rules": "slipstream.averaging.rules",
    "slipstream.modes.averages": "slipstream.averaging.averages",
    "slipstream.modes.choosing": "slipstream.averaging.choosing",
    "slipstream.modes.federated": "slipstream.federated",
    "slipstream.modes.federated.client": "slipstream.federated.client",
    "slipstream.modes.federated.encodings": "slipstream.federated.encodings",
    "slipstream.modes.federated.messages": "slipstream.federated.messages",
    "slipstream.modes.federated.policies": "slipstream.federated.policies",
    "slipstream.modes.federated.server": "slipstream.federated.server",
    "slipstream.modes.federated.shared": "slipstream.federated.shared",
    "slipstream.recipes.aggregation_controls": "slipstream.recipes.aggregation.controls",
    "slipstream.recipes.augmentation": "slipstream.recipes.pseudo_transfer.augmentation",
    "slipstream.recipes.consistency": "slipstream.recipes.pseudo_transfer.consistency",
    "slipstream.recipes.descending": "slipstream.training.loop",
    "slipstream.recipes.fresh": "slipstream.training.reinitialise",
    "slipstream.recipes.generator_quality": "slipstream.recipes.pseudo_transfer.generator_quality",
    "slipstream.recipes.iterand": "slipstream.recipes.masks.iterand",
    "slipstream.recipes.iterand_plan": "slipstream.recipes.masks.plan",
    "slipstream.recipes.iterand_training": "slipstream.recipes.masks.training",
    "slipstream.recipes.keeping": "slipstream.training.recorded_training",
    "slipstream.recipes.meta_plan": "slipstream.recipes.few_shot.plan",
    "slipstream.recipes.meta_ticket": "slipstream.recipes.few_shot",
    "slipstream.recipes.other_head": "slipstream.recipes.pseudo_transfer.other_head",
    "slipstream.recipes.pseudo_controls": "slipstream.recipes.pseudo_transfer.controls",
    "slipstream.recipes.pseudo_pretraining": "slipstream.recipes.pseudo_transfer.pretraining",
    "slipstream.recipes.pseudo_sampling": "slipstream.recipes.pseudo_transfer.sampling",
    "slipstream.recipes.random_weights": "slipstream.recipes.masks.random_weights",
    "slipstream.recipes.scored_weights": "slipstream.recipes.masks.scored_weights",
    "slipstream.recipes.selection": "slipstream.recipes.masks.selection",
    "slipstream.recipes.side_controls": "slipstream.recipes.side_tuning.controls",
    "slipstream.recipes.subspace": "slipstream.recipes",
    "slipstream.recipes.subspace_folder": "slipstream.recipes.subspaces.stored",
    "slipstream.recipes.subspace_training": "slipstream.recipes.subspaces.training",
    "slipstream.recipes.ticket": "slipstream.recipes.masks.ticket",
    "slipstream.recipes.ticket_file": "slipstream.recipes.masks.ticket_file",
    "slipstream.recipes.unlearning": "slipstream.recipes.lure.unlearning",
    "slipstream.report.digits": "slipstream.report.number_format",
    "slipstream.report.dynamics": "slipstream.report.figures",
    "slipstream.report.landscape": "slipstream.report.figures",
    "slipstream.report.modes": "slipstream.report.figures",
    "slipstream.report.training_time": "slipstream.report.figures",
    "slipstream.symmetry.nesting": "slipstream.symmetry.parents",
    "slipstream.symmetry.places": "slipstream.symmetry.gather",
    "slipstream.symmetry.replica": "slipstream.symmetry.eval_copy",
    "slipstream.symmetry.trial": "slipstream.symmetry.perturbed_model",
    "slipstream.symmetry.twin": "slipstream.symmetry.narrow_model",
    "slipstream.testbed.changes": "slipstream.testbed.corruptions",
    "slipstream.testbed.recording": "slipstream.training.old_calls",
    "slipstream.testbed.setup": "slipstream.named_task",
    "slipstream.testbed.training": "slipstream.training",
    "slipstream.trajectory.packed_file": "slipstream.storage.packed_file",
    "slipstream.trajectory.packed_numbers": "slipstream.storage.packed_numbers",
    "slipstream.trajectory.tensor_file": "slipstream.storage.tensor_file",
    "slipstream.transfer.checks": "slipstream.storage.plan_fields",
    "slipstream.transfer.files": "slipstream.storage.writing",
    "slipstream.transfer.ledger": "slipstream.transfer.stage_log",
    "slipstream.transfer.networks": "slipstream.transfer.transfer_state",
    "slipstream.transfer.paths": "slipstream.transfer.plan",
    "slipstream.transfer.porting": "slipstream.porting",
    "slipstream.transfer.porting.adapters": "slipstream.porting.adapters",
    "slipstream.transfer.porting.checkpoints": "slipstream.porting.checkpoints",
    "slipstream.transfer.porting.choosing": "slipstream.porting.choosing",
    "slipstream.transfer.porting.factoring": "slipstream.porting.displacement",
    "slipstream.transfer.porting.output": "slipstream.porting.stored",
    "slipstream.transfer.porting.plan": "slipstream.porting.plan",
    "slipstream.transfer.porting.porting": "slipstream.porting.porting",
    "slipstream.transfer.porting.preparing": "slipstream.porting.displacement",
    "slipstream.transfer.porting.problem": "slipstream.porting.problem",
    "slipstream.transfer.porting.result": "slipstream.porting.result",
    "slipstream.transfer.porting.solution": "slipstream.porting.porting",
    "slipstream.transfer.porting.stored": "slipstream.porting.stored",
    "slipstream.transfer.porting.survey": "slipstream.porting.problem",
    "slipstream.transfer.porting.vocabulary": "slipstream.porting.vocabulary",
    "slipstream.transfer.porting.workbench": "slipstream.porting.method_inputs",
    "slipstream.transfer.processes": "slipstream.evaluation.processes",
    "slipstream.transfer.result": "slipstream.transfer.stage_log",
}

# Names that left their module, or are called otherwise there: module of 0.1 to name to where it is
# now, as `package.module`, or `package.module:name` if it has another name.
NAMES = {
    "slipstream": {
        "recalibrate_batchnorm": "slipstream.evaluation",
    },
    "slipstream.dynamics.jacobians": {
        "Block": "slipstream.dynamics.jacobians:JacobianBlock",
        "numbers_in": "slipstream.dynamics.jacobians:sizes_of",
    },
    "slipstream.dynamics.linearisation": {
        "Place": "slipstream.dynamics.linearised_training:LinearisedPoint",
    },
    "slipstream.dynamics.linearised_training": {
        "Curve": "slipstream.dynamics.linearised_training:LossCurve",
    },
    "slipstream.dynamics.motion": {
        "check_finite": "slipstream.dynamics.motion:check_finite_sums",
    },
    "slipstream.evaluation": {
        "Adaptation": "slipstream.recipes.few_shot",
        "AfterAdaptation": "slipstream.recipes.few_shot",
        "adapt": "slipstream.recipes.few_shot",
        "head_of": "slipstream.recipes.few_shot",
    },
    "slipstream.evaluation.adaptation": {"agrees": "slipstream.recipes.few_shot.adaptation"},
    "slipstream.landscape": {
        "Curve": "slipstream.landscape:FittedCurve",
        "Descent": "slipstream.training.old_calls",
        "Place": "slipstream.landscape:PlanePoint",
        "cosine": "slipstream.landscape:weight_cosine",
    },
    "slipstream.landscape.angles": {
        "cosine": "slipstream.landscape:weight_cosine",
    },
    "slipstream.landscape.checkpoint": {
        "Checkpoint": "slipstream.storage.resumable_state:ResumableState",
    },
    "slipstream.landscape.curve": {
        "Curve": "slipstream.landscape:FittedCurve",
    },
    "slipstream.landscape.directions": {
        "Place": "slipstream.landscape:PlanePoint",
    },
    "slipstream.landscape.storage": {
        "fingerprint": "slipstream.storage.fingerprints",
    },
    "slipstream.matching.gradients": {
        "match_gradients": "slipstream.matching",
    },
    "slipstream.matching.low_rank": {
        "inner": "slipstream.matching.gradients:inner_product",
    },
    "slipstream.modes": {
        "AverageChoice": "slipstream.averaging",
        "AverageRule": "slipstream.averaging",
        "Averages": "slipstream.averaging",
        "Candidate": "slipstream.averaging",
        "EMA": "slipstream.averaging",
        "LAWA": "slipstream.averaging",
        "SWA": "slipstream.averaging",
        "average_candidates": "slipstream.averaging",
        "average_run": "slipstream.averaging",
        "choose_average": "slipstream.averaging",
        "parse_rule": "slipstream.averaging",
    },
    "slipstream.modes.moments": {
        "OnlineOptions": "slipstream.modes.moments:OnlinePlan",
    },
    "slipstream.named_task": {
        "Experiment": "slipstream.evaluation:Task",
        "Setup": "slipstream.named_task:NamedTask",
    },
    "slipstream.porting": {
        "Candidate": "slipstream.porting:PortCandidate",
    },
    "slipstream.recipes": {
        "descend": "slipstream.training.old_calls",
        "fresh_weights": "slipstream.training",
    },
    "slipstream.recipes.descending": {
        "descend": "slipstream.training.old_calls",
    },
    "slipstream.recipes.iterand_training": {
        "save_beside": "slipstream.recipes.masks.training:save_in_run",
    },
    "slipstream.report.static": {
        "Kind": "slipstream.report.figures",
        "plot_runs": "slipstream.report.figures",
    },
    "slipstream.symmetry.trial": {
        "Trial": "slipstream.symmetry.perturbed_model:PerturbedModel",
        "with_noise": "slipstream.symmetry.disturbance",
    },
    "slipstream.symmetry.twin": {
        "twin_of": "slipstream.symmetry.narrow_model:narrow_model",
    },
    "slipstream.testbed": {
        "Experiment": "slipstream.evaluation:Task",
        "FewShot": "slipstream.named_task",
        "RecordedTraining": "slipstream.training",
        "Setup": "slipstream.named_task:NamedTask",
        "TrainingPlan": "slipstream.training.old_calls",
        "TrainingResult": "slipstream.training",
        "rebuild": "slipstream.named_task",
        "record_training": "slipstream.training.old_calls",
        "train": "slipstream.training",
    },
    "slipstream.trajectory.layout": {
        "dtype_name": "slipstream.storage.tensor_form",
    },
    "slipstream.trajectory.packed_file": {
        "in_present_form": "slipstream.storage.packed_header",
    },
    "slipstream.trajectory.packed_numbers": {
        "pack_text": "slipstream.storage.zstd_text",
    },
    "slipstream.trajectory.tensor_file": {
        "parse_header": "slipstream.storage.tensor_header",
        "read_header": "slipstream.storage.tensor_header",
    },
    "slipstream.transfer.ledger": {
        "Ledger": "slipstream.transfer.stage_log:StageLog",
    },
    "slipstream.transfer.networks": {
        "Networks": "slipstream.transfer.transfer_state:TransferState",
        "fingerprint": "slipstream.storage.fingerprints",
    },
    "slipstream.transfer.porting.choosing": {
        "Judge": "slipstream.porting.judge",
        "choose_by_loss": "slipstream.porting.search",
    },
    "slipstream.transfer.porting.problem": {
        "without": "slipstream.porting.problem:fine_tune_without",
    },
    "slipstream.transfer.porting.result": {
        "Candidate": "slipstream.porting:PortCandidate",
    },
    "slipstream.transfer.porting.solution": {
        "solve": "slipstream.porting.porting:find_solution",
    },
    "slipstream.transfer.porting.survey": {
        "Survey": "slipstream.porting.problem:BaseAlignment",
        "TensorSurvey": "slipstream.porting.problem:TensorAlignment",
        "survey": "slipstream.porting.problem:align_bases",
    },
    "slipstream.transfer.porting.vocabulary": {
        "Aligned": "slipstream.porting.vocabulary:AlignedVocabularies",
    },
    "slipstream.transfer.porting.workbench": {
        "Carrier": "slipstream.porting.method_inputs:Aligner",
        "Workbench": "slipstream.porting.method_inputs:MethodInputs",
    },
    "slipstream.weights": {
        "copy": "slipstream.weights:clone",
    },
}

# What to call now instead of what works as in 0.1.
INSTEAD = {
    "slipstream.training.old_calls.Descent": "slipstream.training.TrainingPlan.cosine",
    "slipstream.training.old_calls.TrainingPlan": "slipstream.training.TrainingPlan",
    "slipstream.training.old_calls.descend": "slipstream.training.trained_copy",
    "slipstream.training.old_calls.record_training": (
        "slipstream.training.record_training, with the task of NamedTask.build()"
    ),
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module of 0.1 under its old name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how an old name is loaded, None for all others."""
        return ModuleSpec(name, self) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that has the names of the one that took its place."""
        _warn(spec.name, MODULES[spec.name])
        import_module(MODULES[spec.name])  # what goes wrong there is raised now
        module = ModuleType(spec.name)
        module.__getattr__ = moved_names(spec.name)  # type: ignore[method-assign]
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is loaded already."""


def moved_names(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that names have left, or that is gone itself.

    Args:
        package: Its name in 0.1.

    Returns:
        What finds them where they are now, and warns.
    """

    def find(name: str) -> Any:
        if name not in NAMES.get(package, ()):
            if package in MODULES:
                return getattr(import_module(MODULES[package]), name)
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, renamed = NAMES[package][name].partition(":")
        present = renamed or name
        _warn(f"{package}.{name}", INSTEAD.get(f"{module}.{present}", f"{module}.{present}"))
        return getattr(import_module(module), present)

    return find


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let keyword arguments be given under their names of 0.1.

    Args:
        names: For each old name the present one.

    Returns:
        A decorator: the function renames them, and warns.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> R:
            for before in given.keys() & names.keys():
                _warn(f"{before}=", f"{names[before]}=")
                given[names[before]] = given.pop(before)
            return function(*args, **given)

        return call

    return decorate


def _warn(before: str, now: str) -> None:
    warnings.warn(f"{before} is now {now}.", DeprecationWarning, stacklevel=3)
