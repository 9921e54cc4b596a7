"""A run in fewer bytes, bit for bit, and back.

Each snapshot is packed as the difference to the one before it, and every eighth stands alone, so
that reading one costs seven differences at most. (Bases at powers of two are reached sooner, but
differences over several snapshots take more: all in all 2 % of the run.)

Files are replaced one after the other: the packed one is written and flushed, unpacked again and
compared with the original byte by byte; then the index names it instead; then the original goes. A
process killed at any moment leaves a run that opens, and the next call continues.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slipstream.storage.packed_file import packed_chunks, unpacked_chunks
from slipstream.storage.packed_header import LONGEST_CHAIN, SUFFIX
from slipstream.storage.strict_json import Checksum
from slipstream.storage.writing import write_whole
from slipstream.storage.zstd_text import require_zstandard
from slipstream.trajectory.run_cleaning import remove_own
from slipstream.trajectory.run_files import (
    FORMAT,
    PACKED_FORMAT,
    SNAPSHOTS,
    read_run,
    rewrite_description,
)
from slipstream.trajectory.run_folder import RunWriter, reopen_run
from slipstream.trajectory.run_index import Entry

_PLAIN = ".safetensors"
Progress = Callable[[int, int], object]  # snapshots done, and how many there are


@dataclass(frozen=True)
class Compression:
    """Result of `compress_run` and `decompress_run`."""

    path: Path
    snapshots: int  # all of the run
    replaced: int  # by this call
    bytes_before: int  # of all snapshots
    bytes_after: int

    @property
    def share(self) -> float:
        """The size after, relative to that before."""
        return self.bytes_after / self.bytes_before if self.bytes_before else 1.0


def compress_run(
    run: str | Path, *, keyframe_every: int = 8, progress: Progress | None = None
) -> Compression:
    """Pack the snapshots of a run, without loss; it is read, resumed and transferred as before.

    Snapshots in files of other tools, which `import_run` linked, are packed into the run folder;
    those files stay where they are. Snapshots that are packed already stay as they are.

    Args:
        run: A run folder that nobody is recording to.
        keyframe_every: Of so many snapshots one stands alone. More of them save a few hundredths,
            and make it dearer to read a single one.
        progress: Called after each snapshot.

    Returns:
        The sizes before and after.

    Raises:
        ValueError: If `keyframe_every` is below 1 or above 256.
        OSError: If a snapshot cannot be read or packed, or the disk is full. The run is whole, and
            holds all its snapshots, some of them packed.
        BlockingIOError: If the run is being written.
        ModuleNotFoundError: If the package zstandard is missing.

    Example:
        >>> import tempfile, torch
        >>> from slipstream.trajectory import Layout, Trajectory, create_run
        >>> weights, folder = {"w": torch.randn(50000)}, tempfile.mkdtemp()
        >>> with create_run(folder, model=Layout.of_weights(weights)) as writer:
        ...     for step in range(4):
        ...         _ = writer.append(step=step, weights=weights)
        >>> compress_run(folder).share < 0.3
        True
        >>> torch.equal(Trajectory.open(folder)[2].weights["w"], weights["w"])
        True
    """
    if not 1 <= keyframe_every <= LONGEST_CHAIN:
        raise ValueError(f"keyframe_every must be from 1 to {LONGEST_CHAIN}, got {keyframe_every}.")
    require_zstandard()

    def base_of(entries: Sequence[Entry], position: int) -> Entry | None:
        return entries[position - 1] if position % keyframe_every else None

    with reopen_run(run) as writer:
        rewrite_description(writer.path, format=PACKED_FORMAT)
        return _replace_files(writer, SUFFIX, _pack, base_of, progress)


def decompress_run(run: str | Path, *, progress: Progress | None = None) -> Compression:
    """Unpack the snapshots of a run: the safetensors files are there again, bit for bit.

    Args:
        run: A run folder that nobody is recording to.
        progress: Called after each snapshot.

    Returns:
        The sizes before and after.

    Raises:
        OSError: If a snapshot cannot be read or is not what was packed, or the disk is full. The
            run is whole, and holds all its snapshots, some of them packed.
        BlockingIOError: If the run is being written.
        ModuleNotFoundError: If the package zstandard is missing.
    """
    require_zstandard()
    with reopen_run(run) as writer:
        result = _replace_files(writer, _PLAIN, _unpack, lambda *_: None, progress)
        rewrite_description(writer.path, format=FORMAT)
    return result


def _pack(source: Path, target: Path, base: Path | None) -> int:
    size = write_whole(target, packed_chunks(source, base=base))
    with source.open("rb") as original:
        for chunk in unpacked_chunks(target):
            if original.read(len(chunk)) != chunk:
                raise ValueError("what was packed is not what comes back")
        if original.read(1):
            raise ValueError("not all that was packed comes back")
    return size


def _unpack(source: Path, target: Path, _: Path | None) -> int:
    return write_whole(target, unpacked_chunks(source))  # which compares the digest


def _replace_files(
    writer: RunWriter,
    suffix: str,
    convert: Callable[[Path, Path, Path | None], int],
    base_of: Callable[[Sequence[Entry], int], Entry | None],
    progress: Progress | None,
) -> Compression:
    """Convert the snapshots whose files do not end in `suffix`, one after the other."""
    folder = writer.path
    entries = list(read_run(folder).entries)
    before = sum(entry.bytes for entry in entries)
    replaced = 0
    _remove_twins(folder, entries)
    for position, entry in enumerate(entries):
        if not all(Path(name).suffix == suffix for name in entry.files):
            base = base_of(entries, position)
            entries[position] = _converted(folder, entry, suffix, convert, base)
            writer.relist(entries)
            remove_own(folder, entry.files)
            replaced += 1
        if progress:
            progress(position + 1, len(entries))
    after = sum(entry.bytes for entry in entries)
    return Compression(folder, len(entries), replaced, before, after)


def _converted(
    folder: Path,
    entry: Entry,
    suffix: str,
    convert: Callable[[Path, Path, Path | None], int],
    base: Entry | None,
) -> Entry:
    """Write the files of a snapshot in the other form; the old ones stay."""
    many = len(entry.files) > 1
    stems = [
        f"{entry.step:08d}-{n}" if many else f"{entry.step:08d}" for n in range(len(entry.files))
    ]
    names = tuple(f"{SNAPSHOTS}/{stem}{suffix}" for stem in stems)
    bases = base.files if base and len(base.files) == len(names) else (None,) * len(names)
    try:
        sizes = [
            convert(folder / old, folder / new, None if other is None else folder / other)
            for old, new, other in zip(entry.files, names, bases, strict=True)
        ]
    except BaseException as error:
        remove_own(folder, names)
        if isinstance(error, OSError | ValueError):
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise OSError(
                f"Step {entry.step} of {folder} could not be converted: {reason}. "
                "All snapshots are as they were, or whole in the new form."
            ) from error
        raise
    checksums = tuple(Checksum.of_file(folder / name) for name in names)
    return replace(entry, files=names, bytes=sum(sizes), checksums=checksums)


def _remove_twins(folder: Path, entries: Sequence[Entry]) -> None:
    """Remove the second form of a snapshot, which a process that was killed left behind."""
    listed = {name for entry in entries for name in entry.files}
    for name in listed:
        for suffix in (_PLAIN, SUFFIX):
            twin = str(Path(name).with_suffix(suffix))
            if twin not in listed:
                remove_own(folder, [twin])
