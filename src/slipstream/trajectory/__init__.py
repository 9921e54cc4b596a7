"""One training run, on disk and in memory: record it, open it, import it."""

from typing import TYPE_CHECKING

from slipstream.lazy_names import lazy_names

if TYPE_CHECKING:
    from slipstream.storage.tensor_form import TensorForm
    from slipstream.trajectory.companions import declare_companions
    from slipstream.trajectory.compression import Compression, compress_run, decompress_run
    from slipstream.trajectory.importing import import_run
    from slipstream.trajectory.layout import Layout
    from slipstream.trajectory.recorder import Recorder
    from slipstream.trajectory.run_files import RunFolder, check_run, is_being_written, read_run
    from slipstream.trajectory.run_folder import RunWriter, create_run, reopen_run
    from slipstream.trajectory.schedule import Schedule
    from slipstream.trajectory.trajectory import Snapshot, Trajectory

__all__ = [
    "Compression",
    "Layout",
    "Recorder",
    "RunFolder",
    "RunWriter",
    "Schedule",
    "Snapshot",
    "TensorForm",
    "Trajectory",
    "check_run",
    "compress_run",
    "create_run",
    "declare_companions",
    "decompress_run",
    "import_run",
    "is_being_written",
    "read_run",
    "reopen_run",
]

__getattr__ = lazy_names(__name__, __file__)
