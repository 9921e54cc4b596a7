"""Independent work on any `concurrent.futures.Executor`: the same results as one after the other.

Processes, Ray, Dask and clusters have executors of their own; here is only what they lack: order,
progress, a lost worker's work done again, and errors that say what to do.
"""

import concurrent.futures
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
_log = logging.getLogger(__name__)
_LOST = 3  # times that workers may be lost
_PAUSE = 0.05  # seconds between two looks at futures that cannot be waited for
# What executors raise when a worker has gone, besides the standard library's BrokenExecutor.
_GONE = ("KilledWorker", "WorkerCrashedError", "RayActorError", "UncompletedJobError")


class Submits(Protocol):
    """An executor, of the standard library or like it."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Begin to call a function, and return a future."""


_chosen: ContextVar[Submits | Callable[[], Submits] | None] = ContextVar("executor", default=None)


@contextmanager
def spread_over(executor: Submits | Callable[[], Submits]) -> Generator[None]:
    """Do independent work on an executor for the length of a `with` block.

    That is: the targets and plans of `compare_methods`, the targets of `transfer_to_many`, the
    points of lines, planes and studies (`evaluate_points`). Results are those of one process, to
    the bit.

    Args:
        executor: Anything with `submit` as of `concurrent.futures`. Or a function that makes one:
            then a pool that breaks because a worker is killed is made again, and what was not
            finished is computed again.

    Yields:
        Nothing.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with spread_over(lambda: ThreadPoolExecutor(2)):
        ...     list(spread(pow, [(2, 3), (3, 2)]))
        [8, 9]
    """
    token = _chosen.set(executor)
    try:
        yield
    finally:
        _chosen.reset(token)


def is_spread() -> bool:
    """Return whether work is done on an executor at the moment."""
    return _chosen.get() is not None


def spread(
    function: Callable[..., T],
    jobs: Sequence[tuple[Any, ...]],
    *,
    executor: Submits | Callable[[], Submits] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[T]:
    """Call a function with each of several tuples of arguments; here, or on an executor.

    Args:
        function: Of a module that the workers can import.
        jobs: The arguments of each call; they must not depend on each other.
        executor: Where; by default that of `spread_over`, or this process, one after the other.
        progress: Called when another call is done.

    Yields:
        The results in the order of the jobs, each as soon as those before it are there.

    Raises:
        TypeError: If something cannot be sent to the workers.
        ModuleNotFoundError: If the workers lack this package.
        RuntimeError: If workers are lost again and again.
    """
    tell = progress or (lambda *_: None)
    given = _chosen.get() if executor is None else executor
    if given is None:
        for number, job in enumerate(jobs, start=1):
            result = function(*job)
            tell(number, len(jobs))
            yield result
        return
    done: dict[int, T] = {}
    sent = 0
    for number, result in _anywhere(given, function, jobs):
        done[number] = result
        tell(sent + len(done), len(jobs))
        while sent in done:
            yield done.pop(sent)
            sent += 1


def _anywhere(
    given: Submits | Callable[[], Submits],
    function: Callable[..., T],
    jobs: Sequence[tuple[Any, ...]],
) -> Iterator[tuple[int, T]]:
    """The results as they come; what a lost worker had is done again."""
    make = None if hasattr(given, "submit") else given
    pool: Any = make() if make else given
    left = dict(enumerate(jobs))
    lost = 0
    try:
        while left:
            try:
                for number, result in _once(pool, function, left):
                    del left[number]
                    yield number, result
            except _LostError as error:
                lost += 1
                if lost == _LOST or (make is None and error.broken):
                    raise RuntimeError(_explained(lost, make is None)) from error
                _log.warning("A worker was lost; what it had not finished is computed again.")
                if make:
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = make()
    finally:
        if make:
            pool.shutdown(cancel_futures=True)


def _once(
    pool: Any, function: Callable[..., T], left: Mapping[int, tuple[Any, ...]]
) -> Iterator[tuple[int, T]]:
    """The results as they come, until one is an error; then nothing more is begun."""
    futures: dict[int, Any] = {}
    found = None
    settings = torch.get_num_threads(), torch.get_default_dtype()
    try:
        # A worker that cannot import the package could not even say so.
        found = pool.submit(find_spec, "slipstream")
        for number, job in left.items():
            futures[number] = pool.submit(_work, settings, function, job)
        for number in _as_done(futures):
            yield number, futures.pop(number).result()
    except Exception as error:
        if found is not None and _is_missing(found):
            raise ModuleNotFoundError(
                "The executor's workers cannot import slipstream: install the same version where "
                "they run."
            ) from error
        raise _translated(error) from error
    finally:
        for future in futures.values():
            getattr(future, "cancel", lambda: None)()


def _work(settings: tuple[int, torch.dtype], function: Callable[..., T], job: Iterable[Any]) -> T:
    """In a worker: with as many threads as here, or sums would be rounded otherwise."""
    threads, dtype = settings
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    token = _chosen.set(None)  # a worker that waits for others of its pool may wait for ever
    try:
        return function(*job)
    finally:
        _chosen.reset(token)


def _as_done(futures: Mapping[int, Any]) -> Iterator[int]:
    left = dict(futures)
    while left:
        if ready := [number for number, future in left.items() if future.done()]:
            for number in ready:
                del left[number]
                yield number
        elif all(isinstance(future, concurrent.futures.Future) for future in left.values()):
            concurrent.futures.wait(left.values(), 1, concurrent.futures.FIRST_COMPLETED)
        else:
            time.sleep(_PAUSE)


class _LostError(Exception):
    """A worker has gone."""

    def __init__(self, *, broken: bool) -> None:
        super().__init__()
        self.broken = broken  # whether the executor has gone with it


def _translated(error: Exception) -> Exception:
    if isinstance(error, concurrent.futures.BrokenExecutor):
        return _LostError(broken=True)
    if type(error).__name__ in _GONE:
        return _LostError(broken=False)
    if "pickle" in f"{type(error).__name__} {error}".lower():
        return TypeError(
            f"Not all could be sent to the executor's workers: {error}. Define models, losses and "
            "metrics at the top of a module that the workers can import."
        )
    return error


def _is_missing(found: Any) -> bool:
    try:
        return bool(found.done() and found.result() is None)
    except Exception:  # ruff: ignore[blind-except]  what broke it is raised elsewhere
        return False


def _explained(lost: int, fixed: bool) -> str:
    cause = "killed, perhaps for lack of memory, or it could not import what the work needs"
    if not fixed:
        return f"Workers were lost {lost} times ({cause}): use fewer workers, or find out why."
    return (
        f"A worker was lost ({cause}), and this executor takes no more work. Give a function that "
        "makes one, as in spread_over(lambda: ProcessPoolExecutor(4)): then it is made again."
    )
