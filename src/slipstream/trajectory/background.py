"""Writing snapshots behind a training loop.

The loop pays for one copy of the weights; a thread writes it. The memory of the copy is used again
and again: while it is being written, the next snapshot waits.
"""

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slipstream.trajectory.layout import STATISTICS
from slipstream.trajectory.run_folder import RunWriter
from slipstream.trajectory.sharded_run import ShardedWriter
from slipstream.weights import Weights, is_continuous

_log = logging.getLogger(__name__)
_BUFFERS = 1  # copies of the model: a second one is seldom worth its memory


AfterSnapshot = Callable[[Path, tuple[str, ...]], object]  # the run folder, and files in it


class Background:
    """Writes snapshots on a thread."""

    def __init__(self, writer: RunWriter | ShardedWriter) -> None:
        self._writer = writer
        self._error: Exception | None = None
        self._seen = False  # whether the training loop got the error
        self._free: queue.Queue[_Buffer] = queue.Queue()
        for _ in range(_BUFFERS):
            self._free.put(_Buffer())
        self._full: queue.Queue[tuple[_Buffer | None, dict[str, Any]] | None] = queue.Queue()
        self._last: _Buffer | None = None
        self.after: AfterSnapshot | None = None  # called with what has been written
        self._untold: dict[str, None] = {}  # files, in the order in which they were written
        self._thread = threading.Thread(target=self._write, name="slipstream", daemon=True)
        self._thread.start()

    def put(
        self, step: int, weights: Weights, epoch: float | None, metrics: dict[str, float]
    ) -> None:
        """Copy the weights and have them written; waits while all buffers are full."""
        buffer = self._free.get()
        try:
            if self._error is not None:
                self._seen = True
                raise self._error
            buffer.fill(self._writer.mine(weights))
        except BaseException:  # Ctrl-C too: a half-filled buffer must not be written
            self._free.put(buffer)
            raise
        self._last = buffer
        self._full.put((buffer, {"step": step, "epoch": epoch, "metrics": metrics}))

    def wait(self) -> None:
        """Wait until nothing is left to write; raise what went wrong."""
        self._full.join()
        if self._error is not None:
            self._seen = True
            raise self._error

    def amend(self, epoch: float | None, metrics: dict[str, float]) -> None:
        """Have metrics added to the last snapshot."""
        self._full.put((None, {"epoch": epoch, "metrics": metrics}))

    def holds(self, weights: Weights) -> bool:
        """Whether these are the weights that were put last."""
        if self._last is None:
            return True
        held = self._last.wait()
        return all(
            torch.equal(held[name].cpu(), value.detach().cpu())
            for name, value in self._writer.mine(weights).items()
            if name in held and is_continuous(value) and name.rpartition(".")[2] not in STATISTICS
        )

    def all_hold(self, weights: Weights) -> bool:
        """The same for all processes that write the run; none of them may be left out."""
        self._full.join()
        return self._writer.all_agree(self.holds(weights))

    def raise_unseen(self) -> None:
        """Raise what went wrong on the thread, unless `put` has done so."""
        if self._error is not None and not self._seen:
            raise self._error

    def close(self) -> None:
        """Wait until all is written, and release the run."""
        self._full.put(None)
        self._thread.join()
        self._writer.close()

    def _write(self) -> None:
        while (job := self._full.get()) is not None:
            buffer, snapshot = job
            files: tuple[str, ...] = ()
            try:
                if self._error is not None:
                    pass  # the run ends at the first failure, without a gap
                elif buffer is None:
                    files = self._writer.amend(**snapshot)
                else:
                    files = self._writer.append(weights=buffer.wait(), **snapshot)
            except Exception as error:  # ruff: ignore[blind-except] - raised in the training loop
                self._error = error
                _log.error("The recording stopped: %s", error)
            if buffer is not None:
                self._free.put(buffer)
            self._tell(files)
            self._full.task_done()
        self._tell(())
        self._full.task_done()  # of the None

    def _tell(self, files: tuple[str, ...]) -> None:
        """Call the hook; what it fails to take is offered again with the next snapshot."""
        if self.after is None:
            return
        for name in files:
            self._untold.pop(name, None)  # the index moves behind what it lists
            self._untold[name] = None
        if not self._untold:
            return
        try:
            self.after(self._writer.path, tuple(self._untold))
            self._untold.clear()
        except Exception as error:  # ruff: ignore[blind-except]  the training goes on
            _log.error(
                "What is called after each snapshot failed: %s: %s. The run itself is whole; %s "
                "will be passed again with the next snapshot, or when the recorder is closed.",
                type(error).__name__,
                error,
                ", ".join(self._untold),
            )


class _Buffer:
    """A copy of the weights in host memory."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}
        self._copied: list[torch.cuda.Event] = []

    def fill(self, weights: Weights) -> None:
        """Copy `weights`; those on a GPU arrive later, behind what its stream is doing."""
        for name, value in weights.items():
            if name not in self._held:
                self._held[name] = torch.empty(
                    value.shape, dtype=value.dtype, pin_memory=value.is_cuda
                )
            self._held[name].copy_(value, non_blocking=value.is_cuda)
        self._copied = []
        for device in dict.fromkeys(value.device for value in weights.values() if value.is_cuda):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._copied.append(event)

    def wait(self) -> dict[str, Tensor]:
        """Return the copy, once it is whole."""
        for event in self._copied:
            event.synchronize()
        return self._held
