import json
import math
import sys
from dataclasses import replace

import pytest
import torch
import typer

from report.recorded import walk
from slipstream.cli.app import app
from slipstream.cli.loading import landscapes_of
from slipstream.cli.task_options import TaskOptions
from slipstream.evaluation import evaluate
from slipstream.landscape import trajectory_plane
from slipstream.named_task import NamedTask, rebuild
from slipstream.report.charts.transfer import MeasuredTransfer, along_charts
from slipstream.report.content import Contours, HeatMap, Lines, Note, Panels, Table, plain
from slipstream.report.recorded_run import (
    RecordedRun,
    change_stamp,
    of_validation,
    short_names,
    shown,
)
from slipstream.report.sections import QUESTIONS, Extras, Landscapes, build_section
from slipstream.report.sections.gain import compared, costs, gain
from slipstream.report.static import figure_of
from slipstream.storage.new_run import NewRun
from slipstream.training import TrainingPlan, record_training
from slipstream.trajectory import Trajectory, create_run, is_being_written
from slipstream.transfer import Comparison, Outcome, TransferPlan, transfer_trajectory
from slipstream.weights import weights_of


def on_page(*folders, **options):
    return shown([RecordedRun.open(folder, **options) for folder in folders])


def items(key, runs, kind, extras=None):
    section = build_section(key, runs, extras or Extras())
    return [item for item in section.items if isinstance(item, kind)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the testbed that can be rebuilt, and one that was transferred from it."""
    folder = tmp_path_factory.mktemp("trained")
    setup = NamedTask("mlp", "digits", width=8, examples=256, batch_size=64)
    plan = TrainingPlan(epochs=4)
    record_training(setup.build(), plan, run_folder=folder / "source", keep="every:2")
    experiment = setup.build(seed=5)
    source = Trajectory.open(folder / "source")
    transfer_trajectory(
        source,
        weights_of(experiment.model),
        replace(experiment, validation=list(experiment.validation)),
        plan=TransferPlan("fgmt", stages=3),
        run_folder=NewRun(
            folder / "target", {**source.description["configuration"], "source": "../source"}
        ),
    )
    return folder


def test_the_settings_stand_side_by_side_folded_at_the_end(tmp_path):
    first = walk(tmp_path / "a", configuration={"training": {"lr": 0.1, "momentum": None}})
    second = walk(tmp_path / "b", steps=3, configuration={"training": {"lr": 0.25}, "note": "x"})
    section = build_section("run", on_page(first, second), Extras())
    table = section.items[-1]
    assert table.folded
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert table.header == ["setting", "a", "b"]
    assert rows["lr"] == ["0.1", "0.25"]
    assert rows["note"] == ["-", "x"]
    assert rows["parameters"] == ["43 in 4 tensors"] * 2
    assert rows["snapshots"] == ["8, step 0 to 70, epoch 3.5", "3, step 0 to 20, epoch 1"]
    assert "momentum" not in rows


def test_a_curve_for_each_metric_and_a_line_for_each_part(tmp_path):
    loss, accuracy = items("run", on_page(walk(tmp_path / "a"), walk(tmp_path / "b")), Lines)
    assert [line.name for line in loss.series] == ["a train", "b train"]
    assert list(loss.series[0].x) == list(range(0, 80, 10))
    assert list(loss.series[0].y) == [2.0**-n for n in range(8)]
    assert (loss.log, accuracy.log) == (True, False)
    assert accuracy.series[1].run == 1
    alone = items("run", on_page(walk(tmp_path / "c")), Lines)[0]
    assert [line.name for line in alone.series] == ["train"]


def test_first_last_and_best_of_each_metric(tmp_path):
    table = items("run", on_page(walk(tmp_path / "a")), Table)[0]
    rows = {row[1].text: [cell.text for cell in row[2:]] for row in table.rows}
    assert rows["train loss"] == ["1", "0.007812", "0.007812", "step 70"]
    assert rows["validation accuracy"] == ["0", "0.875", "0.875", "step 70"]


def test_a_sentence_says_first_what_was_learned(tmp_path):
    configuration = {"setup": {"model": "mlp", "data": "digits"}}
    with create_run(
        tmp_path / "a", model=torch.nn.Linear(2, 2), configuration=configuration
    ) as writer:
        weights = {n: v.detach() for n, v in torch.nn.Linear(2, 2).named_parameters()}
        for step, accuracy in enumerate((0.1, 0.9, 0.8)):
            metrics = {"train_loss": 1.0, "validation_loss": 2.0, "validation_accuracy": accuracy}
            writer.append(step=step, weights=weights, metrics=metrics)
        writer.append(step=3, weights=weights)
    note = build_section("run", on_page(tmp_path / "a"), Extras()).items[0]
    assert note.lead
    assert note.text == (
        "a: mlp on digits, 6 parameters. Validation accuracy is 0.8 at step 2, from 0.1 at step 0; "
        "the best was 0.9 at step 1."
    )


def test_a_run_that_diverged_says_so(tmp_path):
    weights = {n: v.detach() for n, v in torch.nn.Linear(2, 2).named_parameters()}
    with create_run(tmp_path / "a", model=torch.nn.Linear(2, 2)) as writer:
        for step, loss in enumerate((1.0, math.inf)):
            writer.append(step=step, weights=weights, metrics={"loss": loss})
    (note,) = items("run", on_page(tmp_path / "a"), Note)
    assert note.text == "a: Linear, 6 parameters. Loss is not finite at step 1: the run diverged."


def test_a_run_without_a_metric_is_named_where_it_is_missing(tmp_path):
    runs = on_page(walk(tmp_path / "a"), walk(tmp_path / "b", metrics=False))
    loss, accuracy = items("run", runs, Lines)
    assert [line.name for line in loss.series] == ["a train"]
    assert loss.reading.endswith(" Not recorded by b.")
    assert accuracy.reading.endswith(" Not recorded by b.")


def test_old_and_new_transfers_have_the_same_names_of_metrics(trained):
    run = on_page(trained / "target")[0].run
    assert set(run.entries[-1].metrics) == {"validation_loss", "validation_accuracy"}
    (table,) = [t for t in items("run", on_page(trained / "target"), Table) if not t.folded]
    assert [row[1].text for row in table.rows] == ["validation accuracy", "validation loss"]
    assert of_validation({"train_loss": 1.0, "loss": 2.0}) == {
        "train_loss": 1.0, "validation_loss": 2.0,
    }  # fmt: skip


def test_the_whole_of_a_run_and_its_phases_have_rows_of_their_own(tmp_path):
    runs = on_page(walk(tmp_path / "a", steps=30))
    (table,) = items("motion", runs, Table)
    motion = runs[0].run.motion.combined()
    whole, *phases = table.rows
    assert (whole[1].text, whole[2].text) == ("all", "0 to 290")
    assert whole[5].value == pytest.approx(float(motion.path_lengths[0]))
    assert whole[6].value == pytest.approx(float(motion.straightness[0]))
    assert len(phases) > 1
    assert sum(row[5].value for row in phases) == pytest.approx(whole[5].value)
    assert {row[6].text for row in phases} == {"-"}


def test_a_transfer_without_validation_data_says_so(tmp_path, trained):
    source = Trajectory.open(trained / "source")
    experiment = rebuild(source.description["configuration"])
    transfer_trajectory(
        source,
        weights_of(experiment.model),
        replace(experiment, validation=None),
        plan=TransferPlan("naive", stages=2),
        run_folder=tmp_path / "unmeasured",
    )
    (note,) = items("transfer", on_page(tmp_path / "unmeasured"), Note)
    assert "without validation data" in note.text


def test_a_long_curve_is_thinned_but_keeps_its_end(tmp_path, monkeypatch):
    # A curve to be thinned has thousands of points.
    monkeypatch.setattr("slipstream.report.sections.outcome._POINTS", 3)
    (line,) = items("run", on_page(walk(tmp_path / "long")), Lines)[0].series
    assert list(line.x) == [0, 30, 60, 70]


def test_the_path_and_the_speeds_are_those_of_the_dynamics(tmp_path):
    runs = on_page(walk(tmp_path / "a"))
    path, speed, distance = items("motion", runs, Lines)
    motion = runs[0].run.motion
    assert path.square
    assert list(path.series[0].steps) == list(range(0, 80, 10))
    assert path.series[0].x == plain(runs[0].run.principal_path.coordinates[0])
    assert speed.series[0].y == plain(motion.combined().speeds[0])
    assert list(speed.series[0].x) == list(range(10, 80, 10))
    assert distance.series[0].y == plain(motion.combined().distances[0])
    (heat,) = items("motion", runs, HeatMap)
    assert (list(heat.rows), list(heat.columns)) == (["0", "1"], list(motion.steps[1:]))
    assert heat.values == plain(motion.by_layer().relative_speeds)


def test_runs_and_transfers_do_not_share_an_axis(tmp_path, trained):
    runs = on_page(walk(tmp_path / "a"), trained / "source", trained / "target")
    charts = {chart.title: chart for chart in items("motion", runs, Lines)}
    assert [s.run for s in charts["Speed of all weights"].series] == [0, 1]
    assert [s.run for s in charts["Speed of all weights of transferred runs"].series] == [2]
    assert charts["Speed of all weights of transferred runs"].x_label == "stage"


def test_modes_are_shown_with_the_band_of_their_members(tmp_path):
    runs = on_page(walk(tmp_path / "a"), modes=2)
    (panels,) = items("modes", runs, Panels)
    found = runs[0].run.modes
    assert len(panels.panels) == 2
    assert panels.title == f"2 modes explain {found.share:.1%} of the motion"
    line = panels.panels[0].series[0]
    assert line.y == plain(found.references[0])
    assert all(low <= high for low, high in zip(line.low, line.high, strict=True))
    (heat,) = items("modes", runs, HeatMap)
    assert heat.values == plain(found.explained / found.motion.sum(1, keepdim=True))


def test_a_long_run_is_measured_at_two_hundred_snapshots_and_says_so(tmp_path):
    runs = on_page(walk(tmp_path / "a", steps=230))
    assert len(runs[0].run.motion.steps) == 200
    assert runs[0].run.motion.steps[-1] == 2290
    assert items("motion", runs, Note)[0].text == "a: 200 of its 230 snapshots, evenly chosen."


def test_empty_short_still_and_broken_runs_say_so(tmp_path):
    empty = create_run(tmp_path / "empty", model=torch.nn.Linear(2, 2))
    empty.close()
    one, still = walk(tmp_path / "one", steps=1), tmp_path / "still"
    fixed = {name: value.detach() for name, value in torch.nn.Linear(2, 2).named_parameters()}
    broken = {name: value * math.nan for name, value in fixed.items()}
    for folder, last in ((still, fixed), (tmp_path / "broken", broken)):
        with create_run(folder, model=torch.nn.Linear(2, 2)) as writer:
            for step, weights in enumerate((fixed, fixed, fixed, last)):
                writer.append(step=step, weights=weights)
    runs = on_page(tmp_path / "empty", one, still, tmp_path / "broken")
    notes = {key: [note.text for note in items(key, runs, Note)] for key in QUESTIONS}
    assert notes["run"] == [
        "empty holds no snapshot; nothing can be drawn yet.",
        "one: Sequential, 43 parameters. Validation accuracy is 0 at step 0.",
        "still: Linear, 6 parameters. No metrics were recorded.",
        "broken: Linear, 6 parameters. No metrics were recorded.",
    ]
    assert notes["motion"][0] == "empty holds no snapshot yet."
    assert "motion needs at least 2" in notes["motion"][1]
    assert notes["motion"][2] == "still: no weight ever moves."
    assert "NaN" in notes["motion"][3]
    assert len(notes["modes"]) == 4
    assert notes["transfer"][0].startswith("No run here was transferred.")
    assert notes["end"][-1] == "The loss around the run was not measured."


def test_a_run_that_is_being_recorded_says_so(tmp_path):
    writer = create_run(tmp_path / "run", model=torch.nn.Linear(2, 2))
    before = change_stamp(tmp_path / "run")
    assert is_being_written(tmp_path / "run")
    assert not is_being_written(tmp_path / "nothing")
    weights = {n: v.detach() for n, v in torch.nn.Linear(2, 2).named_parameters()}
    writer.append(step=0, weights=weights)
    assert change_stamp(tmp_path / "run") != before
    (table,) = items("run", on_page(tmp_path / "run"), Table)
    assert ["state", "being recorded"] in [[cell.text for cell in row] for row in table.rows]
    writer.close()
    assert not is_being_written(tmp_path / "run")


def test_where_locks_cannot_be_seen_a_run_grows_for_a_minute(tmp_path, monkeypatch):
    # A system without a list of locks.
    monkeypatch.setattr("slipstream.trajectory.run_lock._LOCKS", tmp_path / "no locks")
    with create_run(tmp_path / "run", model=torch.nn.Linear(2, 2)):
        assert is_being_written(tmp_path / "run")
        # Instead of a minute that passes.
        monkeypatch.setattr("slipstream.trajectory.run_lock._RECENT", -1)
        assert not is_being_written(tmp_path / "run")
        monkeypatch.undo()
    assert not is_being_written(tmp_path / "run")


def test_ways_of_one_method_become_a_mean_and_a_range():
    transfers = [
        MeasuredTransfer("fgmt", ({"accuracy": 0.1}, {"accuracy": 0.6}), 4, 1.0, run=0),
        MeasuredTransfer("fgmt", ({"accuracy": 0.3}, {"accuracy": 0.8}), 4, 3.0, run=1),
        MeasuredTransfer("naive", ({"accuracy": 0.1}, {"accuracy": 0.4}), 0, 0.0, run=2),
    ]
    (chart,) = along_charts(transfers, {})
    fgmt, naive = chart.series
    assert list(fgmt.y) == pytest.approx([0.2, 0.7])
    assert (list(fgmt.low), list(fgmt.high)) == ([0.1, 0.6], [0.3, 0.8])
    assert (fgmt.run, naive.run) == (None, 2)
    assert (fgmt.dashed, naive.dashed) == (False, True)
    rows = [[cell.text for cell in row] for row in costs(transfers).rows]
    assert rows[0] == ["fgmt", "2", "0.20 ± 0.14", "0.70 ± 0.14", "4 ± 0", "2.0"]
    assert rows[1] == ["naive", "1", "0.1", "0.4", "0", "0.0"]


def test_a_method_without_a_metric_is_named_where_it_is_missing():
    transfers = [
        MeasuredTransfer(
            "fgmt", ({"accuracy": 0.1, "loss": 1.0}, {"accuracy": 0.6, "loss": 0.5}), 4, 1.0
        ),
        MeasuredTransfer("naive", ({"loss": 1.0}, {"loss": 0.7}), 0, 0.0),
    ]
    accuracy, loss = along_charts(transfers, {})
    assert accuracy.reading.endswith(" Not measured for naive.")
    assert "Not measured" not in loss.reading
    assert costs(transfers).rows[1][3].value is None


def test_transfers_of_other_lengths_are_not_averaged():
    short = MeasuredTransfer(
        "fgmt in 1 stages along the line path", ({"loss": 2.0}, {"loss": 1.0}), 2, 1.0
    )
    long = MeasuredTransfer("fgmt in 2 stages along the line path", ({"loss": 2.0},) * 3, 4, 1.0)
    (chart,) = along_charts([short, long], {})
    assert [line.name for line in chart.series] == [short.name, long.name]
    (chart,) = along_charts([long], {})
    assert [line.name for line in chart.series] == ["fgmt"]


def test_a_transfer_is_shown_beside_the_simple_ways(trained):
    runs = on_page(trained / "source", trained / "target")
    items = gain(runs, landscapes=Landscapes(batches=1))
    accuracy, _, table = items
    names = [line.name for line in accuracy.series]
    assert names == ["fgmt", "naive", "random", "source"]
    start = accuracy.series[0].y[0]
    assert all(line.y[0] == pytest.approx(start) for line in accuracy.series[:3])
    assert [row[4].value for row in table.rows] == [6.0, 0.0, 0.0]  # gradients
    alone = gain(runs[1:])
    assert [line.name for line in alone[0].series] == ["fgmt"]
    assert alone[-1].command == "slipstream report RUN --landscape"


def test_the_baseline_is_the_naive_transfer(trained):
    """By hand: the start plus the source's change, as far as the schedule has come."""
    runs = on_page(trained / "target")
    chart = gain(runs, landscapes=Landscapes(batches=1))[0]
    naive = next(line for line in chart.series if line.name == "naive")
    source, target = (Trajectory.open(trained / name) for name in ("source", "target"))
    first, last, start = source[0].weights, source[-1].weights, target[0].weights
    end = {name: start[name] + last[name] - first[name] for name in start}
    experiment = rebuild(source.description["configuration"])
    batch = [next(iter(experiment.validation))]
    found = evaluate(experiment.model, experiment.measured, weights=end, data=batch)
    assert naive.y[-1] == pytest.approx(found["accuracy"])


def test_a_comparison_shows_stages_test_data_and_the_trained_target():
    outcomes = [
        Outcome("target start", 0, {"accuracy": 0.1}, {}),
        Outcome("naive", 0, {"accuracy": 0.5}, {}, ({"accuracy": 0.1}, {"accuracy": 0.4}), 0.0, 0),
        Outcome("trained target", 0, {"accuracy": 0.9}, {}),
    ]
    chart, table = compared(Comparison(tuple(outcomes)))
    assert [line.name for line in chart.series] == [
        "naive", "target start (test)", "trained target (test)",
    ]  # fmt: skip
    assert list(chart.series[2].y) == [0.9, 0.9]
    assert [row[1].value for row in table.rows] == [0.1, 0.5, 0.9]


def test_a_comparison_with_rivals_draws_all_over_gradients_and_counts_what_is_saved():
    def one(name, accuracy, gradients=0, target=0, **others):
        both = {"accuracy": accuracy}
        return Outcome(name, target, both, {}, (), 0.1, gradients, both, **others)

    outcomes = [
        outcome
        for target, plus in ((0, 0.0), (1, 0.04))
        for outcome in (
            one("target start", 0.1 + plus, 0, target),
            one("naive", 0.3 + plus, 0, target),
            one("carried", 0.8 + plus, 10, target),
            one("carried", 0.9 + plus, 20, target),
            one("once", 0.7 + plus, 15, target),
            one("adam", 0.5 + plus, 10, target, without_source=True),
            one("adam", 0.6 + plus, 20, target, without_source=True),
            one("trained target", 0.9 + plus, 0, target),
        )
    ]
    chart, table, saved = compared(Comparison(tuple(outcomes)))
    lines = {line.name: line for line in chart.series}
    assert list(lines) == [
        "naive", "carried", "adam", "target start (test)", "trained target (test)",
    ]  # fmt: skip
    assert lines["carried"].x == [10, 20]
    assert lines["carried"].y == pytest.approx([0.82, 0.92])
    assert lines["carried"].high == pytest.approx([0.84, 0.94])
    assert lines["adam"].x == [0, 10, 20]
    assert lines["adam"].y == pytest.approx([0.12, 0.52, 0.62])
    assert lines["adam"].dashed
    assert not lines["carried"].dashed
    assert lines["naive"].x == [0, 20]
    assert lines["naive"].y[0] == lines["naive"].y[1]
    assert [(mark.name, mark.x, round(mark.y, 3)) for mark in chart.marks] == [("once", 15, 0.72)]
    assert len(table.rows) == 8
    assert [row[-1].text for row in saved.rows] == ["> 1", "> 1"]
    figure_of([chart])
    without = compared(Comparison(tuple(o for o in outcomes if o.name != "adam")))
    assert [item.title for item in without] == [
        "Accuracy over gradients",
        "Comparison on test data",
    ]


def test_the_line_ends_at_the_losses_of_start_and_end(trained):
    runs = on_page(trained / "source", trained / "target")
    extras = Extras(landscapes=Landscapes(seconds=0, batches=1))
    section = build_section("end", runs, extras)
    own, between = (item for item in section.items if isinstance(item, Lines))
    experiment = rebuild(runs[0].run.configuration)
    batch = [next(iter(experiment.validation))]
    trajectory = runs[0].run.trajectory
    for at, snapshot in ((0, trajectory[0]), (-1, trajectory[-1])):
        found = evaluate(
            experiment.model, experiment.measured, weights=snapshot.weights, data=batch
        )
        assert own.series[0].y[at] == pytest.approx(found["loss"], rel=1e-4)
    assert len(own.series[0].x) == 5  # no time for more
    assert between.series[0].y[0] == pytest.approx(own.series[0].y[-1], rel=1e-4)
    (table,) = (item for item in section.items if isinstance(item, Table))
    assert [row[1].text for row in table.rows] == ["source", "target", "source to target"]


def test_the_plane_holds_the_path_and_the_loss_at_the_end(trained):
    runs = on_page(trained / "source")
    extras = Extras(landscapes=Landscapes(seconds=0, batches=1))
    (plane,) = (i for i in build_section("end", runs, extras).items if isinstance(i, Contours))
    assert (len(plane.values), len(plane.values[0])) == (5, 5)
    assert len(plane.path) == len(runs[0].run.trajectory) == len(plane.steps)
    assert plane.path[-1] == (plane.marks[1].x, plane.marks[1].y)
    experiment = rebuild(runs[0].run.configuration)
    corner = trajectory_plane(runs[0].run.trajectory).weights_at(plane.x[-1], plane.y[0])
    batch = [next(iter(experiment.validation))]
    found = evaluate(experiment.model, experiment.measured, weights=corner, data=batch)
    assert plane.values[0][-1] == pytest.approx(found["loss"], rel=1e-3)


def test_a_run_whose_model_is_unknown_says_how_to_give_it(tmp_path):
    runs = on_page(walk(tmp_path / "a"))
    notes = items("end", runs, Note, Extras(landscapes=Landscapes(seconds=0)))
    assert "give both, model and data" in notes[0].text


def test_code_that_only_the_run_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"model": "hostile:model", "data": "hostile:data"}
    run = walk(tmp_path / "a", configuration={"setup": names})
    (note,) = items("end", on_page(run), Note, Extras(landscapes=Landscapes(seconds=0)))
    assert "--model hostile:model --data hostile:data" in note.text
    (note,) = items("end", on_page(run), Note, Extras(landscapes=landscapes_of(TaskOptions(), 0)))
    assert "--model hostile:model --data hostile:data" in note.text
    assert "hostile" not in sys.modules


def test_a_run_that_ends_in_a_nan_has_a_sentence_for_its_end(tmp_path, trained):
    source = Trajectory.open(trained / "source")
    start = source[0].weights
    configuration = source.description["configuration"]
    with create_run(tmp_path / "a", model=source.layout, configuration=configuration) as writer:
        writer.append(step=0, weights=start)
        writer.append(step=1, weights={name: value * math.nan for name, value in start.items()})
    (note,) = items("end", on_page(tmp_path / "a"), Note, Extras(landscapes=Landscapes(seconds=0)))
    assert note.text.startswith("a: end holds a NaN")


def test_names_are_as_short_as_they_can_be(tmp_path):
    assert short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert short_names([tmp_path / "run" / ".." / "x"]) == ["x"]


def test_content_is_plain_json(tmp_path):
    section = build_section("motion", on_page(walk(tmp_path / "a")), Extras())
    text = json.dumps(plain(section), allow_nan=False)
    assert json.loads(text)["question"] == "How did the weights move?"


def test_the_commands_that_a_page_names_have_these_flags(tmp_path, trained):
    runs = on_page(walk(tmp_path / "a"), trained / "target")
    notes = [
        *items("transfer", runs[:1], Note), *items("transfer", runs[1:], Note),
        *items("end", runs, Note),
    ]  # fmt: skip
    commands = [note.command.split() for note in notes if note.command]
    assert {words[1] for words in commands} == {"report", "transfer"}
    for _, name, *rest in commands:
        known = {
            flag
            for parameter in typer.main.get_command(app).commands[name].params
            for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {word for word in rest if word.startswith("--")} <= known
