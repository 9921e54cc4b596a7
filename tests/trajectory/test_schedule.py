"""Schedules by their definitions, and through JSON."""

import json

import pytest

from slipstream.trajectory import Schedule

EACH = [
    Schedule.every(7),
    Schedule.epochs(5, every=2),
    Schedule.log(per_decade=4),
    Schedule.at([9, 2, 9]),
]


@pytest.mark.parametrize("schedule", EACH, ids=str)
def test_json_gives_the_same_schedule(schedule):
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


@pytest.mark.parametrize("schedule", EACH, ids=str)
def test_the_first_and_the_last_step_are_kept(schedule):
    kept = schedule.steps(33)
    assert (kept[0], kept[-1]) == (0, 33)
    assert all(step in schedule for step in kept[1:-1])


def test_the_rules():
    assert Schedule.every(7).steps(21) == [0, 7, 14, 21]
    assert Schedule.epochs(5, every=2).steps(25) == [0, 10, 20, 25]
    assert Schedule.at([9, 2, 9]).steps(10) == [0, 2, 9, 10]
    assert Schedule.epochs(5).epoch_of(15) == 3
    assert Schedule.every(5).epoch_of(12) is None


@pytest.mark.parametrize("per_decade", [1, 3, 5, 10, 50])
def test_log_holds_every_rounded_power_and_nothing_else(per_decade):
    schedule = Schedule.log(per_decade=per_decade)
    powers = {0} | {round(10 ** (n / per_decade)) for n in range(4 * per_decade + 1)}
    assert schedule.steps(10_000) == sorted(powers)


def test_no_schedule_without_one_rule():
    for make in (lambda: Schedule(), lambda: Schedule(interval=2, per_decade=3)):
        with pytest.raises(ValueError, match="one rule"):
            make()
    with pytest.raises(ValueError, match="interval of a schedule must be at least 1, got 0"):
        Schedule.every(0)
    with pytest.raises(ValueError, match="must not be negative, got -3"):
        Schedule.at([1, -3])
