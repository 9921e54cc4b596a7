"""Recording a model that is sharded over several processes: each writes its pieces.

What the processes have to tell each other, behind the training loop, goes through a group of its
own, so that it does not mix with what the training sends. The index lists a snapshot once the files
of all have landed; so whichever process is killed, what is listed is whole.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed
from torch import Tensor, nn

from slipstream.evaluation.processes import of_all_processes, on_main_process
from slipstream.sharded import Region, local_part, region_of
from slipstream.storage.pieces import sharding_note
from slipstream.trajectory.layout import Layout
from slipstream.trajectory.run_cleaning import shard_name
from slipstream.trajectory.run_folder import RunWriter, write_tensor_file
from slipstream.weights import Weights, weights_of


class ShardedWriter:
    """Appends to a run what this process holds; the first one keeps the index.

    Every piece is written once, by the first process that holds it.
    """

    def __init__(self, model: nn.Module, path: str | Path, begin: Callable[[], RunWriter]) -> None:
        """Agree with the other processes, and open the run in the first one.

        Args:
            model: A sharded model.
            path: The run folder.
            begin: Makes or reopens the run.

        Raises:
            ValueError: If the processes have other models or folders.
        """
        self.path, self.layout = Path(path).absolute(), Layout.of(model)
        self._group = torch.distributed.new_group(backend="gloo")
        regions = {name: region_of(value) for name, value in weights_of(model).items()}
        known = of_all_processes((str(self.path), self.layout, regions), self._group)
        for rank, (folder, layout, _) in enumerate(known):
            if folder != known[0][0]:
                raise ValueError(
                    f"Process {rank} records into {folder}, process 0 into {known[0][0]}: give all "
                    "the same path."
                )
            known[0][1].check(layout.tensors, where=f"The model of process {rank}")
        self._own = _own_pieces([of_process for _, _, of_process in known], self.layout)
        self._writer: RunWriter | None = None
        self._error: Exception | None = None  # of this process, which the others do not know yet

        def opened() -> int | None:
            self._writer = begin()
            return self._writer.last_step

        self.last_step = on_main_process(opened, self._group)

    def mine(self, weights: Weights) -> dict[str, Tensor]:
        """Return what this process has to write of a model.

        Args:
            weights: Those of the model.

        Returns:
            Pieces, as plain tensors that share its memory.

        Raises:
            RuntimeError: If a tensor is not cut as it was.
        """
        parts = {name: local_part(weights[name]) for name in self._own}
        for name, (_, sizes) in self._own.items():
            if tuple(parts[name].shape) != sizes:
                raise RuntimeError(
                    f"The tensor {name!r} is gathered at the moment, or cut in another way than "
                    "when the recorder was made: record after the optimiser's step."
                )
        return parts

    def append(
        self,
        *,
        step: int,
        weights: Weights,
        epoch: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> tuple[str, ...]:
        """Write the pieces of this process, and have the snapshot listed once all have landed.

        Args:
            step: Optimiser steps done.
            weights: What `mine` returned, on the CPU.
            epoch: Epochs done, if known.
            metrics: Numbers to keep; those of the first process count.

        Returns:
            In the first process, the files of the run folder that are new or have changed, those
            of all processes, the index last.

        Raises:
            OSError: If a process could not write its pieces, or has ended. The run then holds what
                it held before. All processes get the same error.
        """
        own = shard_name(step, torch.distributed.get_rank(), torch.distributed.get_world_size())
        try:
            landed = of_all_processes(self._written(own, step, weights), self._group)
            files = self._files_of(landed, own)
            new = on_main_process(lambda: self._list(files, step, epoch, metrics), self._group)
        except Exception as error:
            reason = error if isinstance(error, _FailureError | OSError) else _ended(error)
            raise OSError(
                f"Step {step} could not be kept in {self.path}: {reason}. The snapshots before it "
                "are whole."
            ) from error
        return new if self._writer is not None else ()

    def amend(
        self, *, epoch: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> tuple[str, ...]:
        """Add metrics to the last snapshot: those of the first process.

        Args:
            epoch: Epochs done, if known.
            metrics: Values to keep with it.

        Returns:
            The file of the run folder that has changed.
        """
        try:
            if self._writer is not None:
                return self._writer.amend(epoch=epoch, metrics=metrics)
        except (OSError, ValueError) as error:  # the others are in the middle of something else
            self._error = error
        return ()

    def all_agree(self, answer: bool) -> bool:
        """Return whether all processes say yes."""
        return all(of_all_processes(answer, self._group))

    def close(self) -> None:
        """Release the run for other writers."""
        if self._writer is not None:
            self._writer.close()

    def _written(self, name: str, step: int, weights: Weights) -> "_Landed | str":
        """Write the pieces of this process; a failure is returned, for all to hear of it."""
        rank = torch.distributed.get_rank()
        try:
            if self._error is not None:
                raise self._error
            if not weights:
                return _Landed(step, {})
            note = sharding_note({n: offsets for n, (offsets, _) in self._own.items()})
            return _Landed(step, {name: write_tensor_file(self.path / name, weights, note)})
        except Exception as error:  # ruff: ignore[blind-except]  the others wait for an answer
            said = error.strerror if isinstance(error, OSError) and error.strerror else error
            return f"process {rank}: {said}"

    def _files_of(self, landed: "Sequence[_Landed | str]", own: str) -> dict[str, str]:
        """The checksums of all files, if every process has written the same step."""
        errors = [said for said in landed if isinstance(said, str)]
        whole = [said for said in landed if isinstance(said, _Landed)]
        if not errors and len(steps := {said.step for said in whole}) > 1:
            errors = [f"the processes record different steps, {sorted(steps)}"]
        if errors:
            # Only here: after a broken connection, another may have listed what this one wrote.
            (self.path / own).unlink(missing_ok=True)
            raise _FailureError("; ".join(errors))
        return {name: checksum for said in whole for name, checksum in said.files.items()}

    def _list(
        self,
        files: Mapping[str, str],
        step: int,
        epoch: float | None,
        metrics: Mapping[str, float] | None,
    ) -> tuple[str, ...]:
        """Only in the first process."""
        if unseen := [name for name in files if not (self.path / name).is_file()]:
            raise OSError(
                f"{unseen[0]}, which another process wrote, is not seen by the first one: the run "
                "folder must be on a file system that all of them share"
            )
        if self._writer is None:
            return ()
        return self._writer.list_written(files, step=step, epoch=epoch, metrics=metrics)


@dataclass(frozen=True)
class _Landed:
    """What a process has written of a snapshot."""

    step: int
    files: Mapping[str, str]  # checksums by path in the run folder


class _FailureError(Exception):
    """What a process could not do, known to all."""


def _ended(error: Exception) -> str:
    said, *_ = str(error).splitlines() or [type(error).__name__]
    return f"another process has ended or does not answer ({said})"


def _own_pieces(regions: Sequence[Mapping[str, Region]], layout: Layout) -> dict[str, Region]:
    """The pieces that this process writes: those that no earlier one holds too."""
    rank, own = torch.distributed.get_rank(), {}
    for name, form in layout.tensors.items():
        held = [of_process[name] for of_process in regions]
        sizes = {region: math.prod(region[1]) for region in held}
        if sum(sizes.values()) != math.prod(form.shape):
            raise ValueError(
                f"The tensor {name!r} {form} is cut in a way that cannot be recorded: the pieces "
                f"of all processes are {sorted(sizes)}."
            )
        wanted = sizes[held[rank]] or not any(sizes.values())
        if wanted and held.index(held[rank]) == rank:
            own[name] = held[rank]
    return own
