"""Independent work on executors: the results of one process, and what is said when workers fail."""

import gc
import os
import signal
import sys
import time
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn

from slipstream.evaluation import Task, accuracy, spread_over
from slipstream.evaluation.executors import spread
from slipstream.landscape import landscape_study
from slipstream.landscape.evaluator import evaluate_points
from slipstream.landscape.plans import StudyPlan
from slipstream.trajectory import Trajectory
from slipstream.transfer import Target, TransferPlan, compare_methods, transfer_to_many
from slipstream.weights import weights_of


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batches(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(count)
    ]


def task():
    held = {"validation": batches(2), "test": batches(3)}
    return Task(network(9), batches(1), metrics={"accuracy": accuracy}, **held)


def run():
    weights = [weights_of(network(seed)) for seed in range(3)]
    return Trajectory.from_weights([weights[0], weights[1]])


def targets():
    starts = [weights_of(network(seed)) for seed in (4, 5)]
    return [Target(start, trained=weights_of(network(6))) for start in starts]


class LastFirst:
    """Not of the standard library, as submitit's: nothing to wait for, and the last job first."""

    def __init__(self):
        self.left = []

    def submit(self, function, /, *args):
        self.left.append(Later(self, function, args))
        return self.left[-1]


class Later:
    def __init__(self, owner, function, args):
        self.owner, self.function, self.args = owner, function, args

    def done(self):
        return self.owner.left[-1] is self

    def result(self):
        self.owner.left.remove(self)
        return self.function(*self.args)


class Losing(Executor):
    """Loses the worker of some of its jobs; broken or not after it."""

    def __init__(self, error, lost):
        self.error, self.lost, self.closed = error, list(lost), False

    def submit(self, function, /, *args):
        future = Future()
        if function.__name__ == "find_spec" or args[-1][0] not in self.lost:
            future.set_result(function(*args))
        else:
            self.lost.remove(args[-1][0])
            future.set_exception(self.error)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.closed = True


class KilledWorker(Exception):  # ruff: ignore[error-suffix-on-exception-name] - as Dask calls it
    pass


def everything():
    """All that is done on executors, as plain values."""
    weights = {f"n{seed}": weights_of(network(seed)) for seed in range(3)}
    plans = {"carried": TransferPlan("naive", stages=2), "gmt": TransferPlan("gmt", stages=2)}
    compared = compare_methods(run(), targets(), task(), plans=plans)
    many = transfer_to_many(run(), targets(), task(), plan=TransferPlan("fgmt", stages=2))
    study = landscape_study(
        weights, task(), plan=StudyPlan(points=4, corners=("n0", "n1", "n2"), plane_points=3)
    )
    corners = [weights["n0"], weights["n1"]]
    plain = replace(task(), calibration=())  # these are computed together, in chunks
    line = torch.tensor([[1 - t / 20, t / 20] for t in range(21)])
    return {
        "compared": [replace(o, seconds=0.0) for o in compared.outcomes],
        "many": [{n: v.tolist() for n, v in result.weights.items()} for result in many],
        "study": study.to_json(),
        "points": {
            n: v.tolist() for n, v in evaluate_points(corners, line, plain, memory=4000).items()
        },
    }


@pytest.fixture(scope="module")
def alone():
    return everything()


@pytest.mark.parametrize("kind", ["threads", "last first"])
def test_results_are_those_of_one_process_to_the_bit(alone, kind):
    with (
        ThreadPoolExecutor(3) as threads,
        spread_over(threads if kind == "threads" else LastFirst()),
    ):
        assert everything() == alone


def test_progress_counts_what_is_done():
    told = []
    with spread_over(LastFirst()):
        found = list(spread(pow, [(2, n) for n in range(4)], progress=lambda *n: told.append(n)))
    assert found == [1, 2, 4, 8]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_a_lost_worker_had_is_computed_again(caplog):
    made = []

    def make():
        made.append(Losing(BrokenProcessPool("gone"), [2] if len(made) < 2 else []))
        return made[-1]

    with spread_over(make):
        assert list(spread(abs, [(n,) for n in range(4)])) == [0, 1, 2, 3]
    assert [pool.closed for pool in made] == [True, True, True]
    assert caplog.text.count("A worker was lost") == 2
    # An executor that stays whole, as Dask's, is asked again.
    with spread_over(Losing(KilledWorker(), [1, 3])):
        assert list(spread(abs, [(n,) for n in range(4)])) == [0, 1, 2, 3]


def test_losing_workers_again_and_again_is_an_error():
    broken = BrokenProcessPool("gone")
    with (
        spread_over(Losing(broken, [1])),
        pytest.raises(RuntimeError, match="Give a function that"),
    ):
        list(spread(abs, [(n,) for n in range(3)]))
    with (
        spread_over(lambda: Losing(broken, [1])),
        pytest.raises(RuntimeError, match=r"lost 3 times .*use fewer workers"),
    ):
        list(spread(abs, [(n,) for n in range(3)]))


def test_an_error_of_the_work_itself_is_raised_as_it_is():
    with spread_over(LastFirst()), pytest.raises(ZeroDivisionError):
        list(spread(divmod, [(1, 1), (1, 0)]))


def test_ctrl_c_cancels_what_has_not_begun():
    begun = []

    def interrupt(*_):
        raise KeyboardInterrupt

    with (
        ThreadPoolExecutor(1) as threads,
        spread_over(threads),
        pytest.raises(KeyboardInterrupt),
    ):
        list(spread(slowly, [(begun, n) for n in range(50)], progress=interrupt))
    assert len(begun) < 10


def slowly(begun, number):
    begun.append(number)
    time.sleep(0.02)


def test_workers_without_the_package_are_told_apart():
    class Without(Losing):
        def submit(self, function, /, *args):
            future = super().submit(function, *args)
            if function.__name__ == "find_spec":
                future = Future()
                future.set_result(None)
            return future

    with (
        spread_over(Without(BrokenProcessPool("gone"), [0])),
        pytest.raises(ModuleNotFoundError, match="workers cannot import slipstream: install"),
    ):
        list(spread(abs, [(0,), (1,)]))


# With real processes, which have to import everything first.


@pytest.fixture(scope="module")
def make_pool():
    return partial(ProcessPoolExecutor, 2, mp_context=get_context("spawn"))


@pytest.mark.slow
def test_processes(alone, make_pool):
    with spread_over(make_pool):
        assert everything() == alone


@pytest.mark.slow
def test_what_cannot_be_sent_is_named(make_pool):
    corners = [weights_of(network(seed)) for seed in (0, 1)]
    with (
        spread_over(make_pool),
        pytest.raises(TypeError, match=r"Not all could be sent .* at the top"),
    ):
        evaluate_points(corners, torch.eye(2), task(), metrics={"one": lambda *_: torch.ones(())})


@pytest.mark.slow
def test_a_killed_process_is_replaced(make_pool, tmp_path, caplog):
    with spread_over(make_pool):
        found = list(spread(die_once, [(tmp_path / "dead", n) for n in range(6)]))
    assert found == list(range(6))
    assert "A worker was lost" in caplog.text


def die_once(mark, number):
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_processes_that_lack_the_package(make_pool):
    with (
        make_pool(initializer=forget_the_package) as pool,
        spread_over(pool),
        pytest.raises(ModuleNotFoundError, match="workers cannot import slipstream"),
    ):
        list(spread(abs, [(1,), (2,)]))


def forget_the_package():
    for name in [name for name in sys.modules if name.partition(".")[0] == "slipstream"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if "slipstream" not in str(list(Path(path).glob("*")))]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]


@pytest.mark.slow
def test_dask(alone):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client, spread_over(client.get_executor()):
        assert everything() == alone


@pytest.mark.slow
def test_submitit(alone, tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(folder=tmp_path)
    executor.update_parameters(timeout_min=10)
    with spread_over(executor):
        assert everything() == alone
    with warnings.catch_warnings(action="ignore"):  # it does not wait for processes that are done
        del executor
        gc.collect()


@pytest.mark.slow
def test_ray(alone):
    ray = pytest.importorskip("ray")

    class OnRay:
        def submit(self, function, /, *args):
            return ray.remote(function).remote(*args).future()

    ray.init(num_cpus=2, include_dashboard=False)
    try:
        with spread_over(OnRay()):
            assert everything() == alone
    finally:
        ray.shutdown()
