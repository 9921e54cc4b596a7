"""Runs of recipes under the commands of the other rooms, as a user would type them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from commands import slipstream
from slipstream import find_neuron_groups
from slipstream.cli.masked import lost_mask, share_of_zeros
from slipstream.evaluation import accuracy, evaluate
from slipstream.named_task import rebuild
from slipstream.recipes import load_subspace, load_ticket
from slipstream.report.content import Lines, Table
from slipstream.report.recorded_run import RecordedRun, shown
from slipstream.report.sections import Extras, build_section
from slipstream.symmetry.permutation import Permutation
from slipstream.trajectory import Trajectory, check_run
from slipstream.weights import interpolate, parameter_names

SMALL = ("mlp", "--width", 8, "--epochs", 3)
QUICK = ("--no-controls", "--batch-size", 128)
RUNS = ("iterand", "lure", "aggregation", "subspace", "side/task")
WHOLE = RUNS[:-1]  # those that tell how to build their network


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of every recipe, and one transferred from the ticket."""
    folder = tmp_path_factory.mktemp("runs")
    slipstream("recipe", "iterand", *SMALL, "--pruned", 0.75, "--out", folder / "iterand")
    slipstream("recipe", "lure", *SMALL, *QUICK, "--chunks", 2, "--out", folder / "lure")
    slipstream("recipe", "aggregation", *SMALL, *QUICK, "--out", folder / "aggregation")
    slipstream("recipe", "subspace", *SMALL, "--out", folder / "subspace")
    side = ("--data", "digits+turned", "--epochs", 2, "--batches", 3, "--no-controls")
    slipstream("recipe", "side-tuning", folder / "lure", *side, "--out", folder / "side")
    transfer(folder / "iterand", folder / "transferred")
    return folder


def transfer(source, out):
    how = ("--seed", 7, "--method", "fgmt-signed", "--stages", 3)
    return slipstream("transfer", source, *how, "--out", out)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_a_recipe_says_which(runs, name):
    text = slipstream("show", runs / name).stdout
    recipe = {"side/task": "side-tuning"}.get(name, name)
    assert f"recipe: {recipe}" in text
    assert check_run(runs / name) == []


def test_settings_of_the_recipe_are_shown(runs):
    said = slipstream("show", runs / "iterand").stdout
    assert "recipe: iterand, pruned 0.75, selection layer" in said
    assert "recipe: lure, share 0.2" in slipstream("show", runs / "lure").stdout
    assert "recipe" not in slipstream("show", runs / "transferred").stdout


@pytest.mark.parametrize("name", RUNS)
def test_any_run_is_decomposed_measured_drawn_and_packed(runs, name, tmp_path):
    run = shutil.copytree(runs / name, tmp_path / "run")
    modes = json.loads(slipstream("modes", run, "--modes", 2, "--compare", "--json").stdout)
    assert modes
    assert json.loads(slipstream("motion", run, "--json").stdout)
    slipstream("plot", "metrics", run, "-o", tmp_path / "metrics.png")
    before = Trajectory.open(run)[-1].weights
    slipstream("compress", run)
    after = Trajectory.open(run)[-1].weights
    assert all(torch.equal(after[n], value) for n, value in before.items())


@pytest.mark.parametrize("name", WHOLE)
def test_what_tells_its_network_is_evaluated_averaged_and_transferred(runs, name, tmp_path):
    run = runs / name
    own = json.loads(slipstream("evaluate", run, "--json").stdout)
    averaged = tmp_path / "averaged.safetensors"
    given = ("--rule", "lawa:2", "-o", averaged, "--json")
    found = json.loads(slipstream("average", run, *given).stdout)
    last = next(one for one in found["candidates"] if one["name"] == "last")
    recorded = Trajectory.open(run)[-1].metrics
    first = "_1" if name == "aggregation" else ""  # of its data sets
    assert last["validation"]["loss"] == recorded[f"validation_loss{first}"]
    line = ("landscape", "line", f"{run}@0", run, averaged, "--points", 3, "--json")
    losses = json.loads(slipstream(*line).stdout)["values"]["loss"]
    assert losses[2] == pytest.approx(own["loss"], rel=1e-5)
    slipstream("landscape", "plane", run, "--points", 5, "-o", tmp_path / "plane.png")
    transfer(run, tmp_path / "transferred")
    assert check_run(tmp_path / "transferred") == []


def test_what_lies_beside_a_base_says_so(runs):
    for command in (("evaluate",), ("average",), ("transfer", "--seed", 7)):
        said = slipstream(command[0], runs / "side" / "task", *command[1:], code=2).stderr
        assert f"was trained beside {runs / 'lure'}, without that" in said
        assert said.count("\n") == 1


def test_a_page_names_the_recipe_and_not_that_of_a_source(runs, tmp_path):
    pages = RUNS[:3]
    given = [runs / name for name in (*pages, "transferred")]
    slipstream("report", *given, "-o", tmp_path / "page.html", "--no-landscape", "--modes", 2)
    assert b"share of the masked weights that were pruned" in (tmp_path / "page.html").read_bytes()
    *_, table = build_section("run", shown(list(map(RecordedRun.open, given))), Extras()).items
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["recipe"] == [*pages, "-"]
    assert rows["pruned"] == ["0.75", "-", "-", "-"]
    assert rows["share"] == ["-", "0.2", "-", "-"]
    assert rows["data"] == ["digits", "digits", "digits, digits+permuted", "digits"]
    assert rows["seed"] == ["0"] * 4


def test_metrics_of_several_data_sets_share_a_chart(runs):
    items = build_section("run", shown([RecordedRun.open(runs / "aggregation")]), Extras()).items
    charts = {item.key: [s.name for s in item.series] for item in items if isinstance(item, Lines)}
    assert charts == {
        "loss": ["validation 1", "validation 2"],
        "accuracy": ["validation 1", "validation 2"],
        "objective": ["objective"],
    }
    (values,) = (item for item in items if isinstance(item, Table) and item.title == "Metrics")
    best = {row[1].text: row[4].text for row in values.rows}
    assert best["validation accuracy 2"] != "-"


def test_commands_say_when_a_mask_is_not_kept(runs, tmp_path):
    ticket = runs / "iterand"
    assert "no mask" not in slipstream("average", ticket, "--rule", "lawa:1").stdout
    said = transfer(ticket, tmp_path / "ticket").stdout
    assert "75.0% of the weights are 0 at the end of the run, 0.0% here: no mask stays" in said
    assert "no mask" not in transfer(runs / "lure", tmp_path / "lure").stdout
    one, other = (Trajectory.open(ticket)[at].weights for at in (0, -1))
    half = interpolate(one, other, 0.5)
    assert 0.1 < share_of_zeros(half) < 0.74
    assert lost_mask(other, half).startswith("75.0% of the weights are 0 at the end of the run, ")
    assert lost_mask(other, other) is lost_mask(half, other) is None


def test_recipes_go_on_from_a_transferred_run(runs, tmp_path):
    start = runs / "transferred"
    end = Trajectory.open(start)[-1].weights
    small = ("mlp", "--width", 8, "--epochs", 1, *QUICK)
    slipstream("recipe", "lure", *small, "--start", start, "--out", tmp_path / "lure")
    begun = Trajectory.open(tmp_path / "lure")[0].weights
    assert all(torch.equal(begun[n], value) for n, value in end.items())
    both = ("--start", start, "--start", start, "--out", tmp_path / "sum", "--json")
    slipstream("recipe", "aggregation", *small, *both)
    total = Trajectory.open(tmp_path / "sum")[0].weights
    assert all(torch.equal(total[n], 2 * value) for n, value in end.items())
    how = ("--epochs", 1, "--batches", 2, "--no-controls", "--out", tmp_path / "side", "--json")
    said = json.loads(slipstream("recipe", "side-tuning", start, *how).stdout)
    own = json.loads(slipstream("evaluate", start, "--json").stdout)
    assert {"split": "test", **said["base"]["base"]} == own
    made = Trajectory.open(tmp_path / "side" / "task").description["configuration"]
    assert made["base"] == str(start)


@pytest.mark.parametrize(
    ("method", "network"),
    [
        ("fgmt", ("mlp", "--width", 8)),
        ("oracle", ("conv_net", "--width", 0.125, "--option", "batchnorm=true")),
    ],
)
def test_a_ticket_transferred_to_a_permuted_start_is_the_permuted_ticket(method, network, tmp_path):
    run, start, end, moved = (tmp_path / name for name in ("run", "start", "end", "moved"))
    brief = ("--epochs", 3, "--examples", 300)
    slipstream("recipe", "iterand", *network, *brief, "--out", run)
    recorded = Trajectory.open(run)
    experiment = rebuild(recorded.description["configuration"])
    groups = find_neuron_groups(experiment.model, next(iter(experiment.data))[0])
    permutation = Permutation.random(groups, seed=3)
    permuted = permutation.apply(load_ticket(run).weights)
    save_file(permutation.apply(recorded[0].weights), start)
    save_file(permuted, end)
    how = ("--method", method, "--stages", 2, "--out", moved)
    known = ("--trained-target", end) if method == "oracle" else ()
    slipstream("transfer", run, "--target", start, *how, *known)
    found = Trajectory.open(moved)[-1].weights
    assert share_of_zeros(permuted) == pytest.approx(0.5, abs=0.01)
    for name, _ in experiment.model.named_parameters():
        torch.testing.assert_close(found[name], permuted[name], rtol=0, atol=1e-6)
    names = parameter_names(experiment.model)
    # A transfer finds BatchNorm's running statistics anew, of other batches: those of the run here.
    there = {**permuted, **{name: found[name] for name in names}}
    own, there = (
        evaluate(experiment.model, {"accuracy": accuracy}, weights=w, data=experiment.test)
        for w in (recorded[-1].weights, there)
    )
    assert there == own


@pytest.mark.parametrize("name", [*WHOLE, "transferred"])
def test_a_run_that_is_overwritten_leaves_nothing_behind(runs, name, tmp_path):
    run = shutil.copytree(runs / name, tmp_path / "run")
    said = slipstream("train", *SMALL, "--out", run, code=2).stderr
    assert "give another path, resume it, or pass --overwrite" in said
    slipstream("train", *SMALL, "--out", run, "--overwrite")
    assert sorted(p.name for p in run.iterdir()) == ["run.json", "snapshots", "snapshots.jsonl"]
    slipstream("report", run, "-o", tmp_path / "page.html", "--no-landscape", "--modes", 2)
    slipstream("recipe", "lure", *SMALL, *QUICK, "--out", run, "--overwrite")
    for load in (load_ticket, load_subspace):
        with pytest.raises(FileNotFoundError):
            load(run)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("aggregation", *SMALL, *QUICK, "--data", "digits", "--data", "digits+turned"), "data is"),
        (("iterand", *SMALL, "--pruned", 0.75, "--batch-size", 64), "setup.batch_size is 128"),
        (("lure", *SMALL, *QUICK, "--chunks", 2, "--data", "digits+turned"), "setup.data is"),
        (("lure", *SMALL, *QUICK, "--chunks", 3), "its lure.chunks is 2, here it is 3"),
    ],
)
def test_another_training_is_not_taken_for_it(runs, given, message, tmp_path):
    run = shutil.copytree(runs / given[0], tmp_path / "run")
    said = slipstream("recipe", *given, "--resume", "--out", run, code=2).stderr
    assert message in said
    other = ("lure", *SMALL, *QUICK) if given[0] == "iterand" else ("iterand", *SMALL)
    said = slipstream("recipe", *other, "--resume", "--out", run, code=2).stderr
    assert "is of another training: it has no" in said
    assert said.count("\n") == 1


def test_a_start_elsewhere_is_another_training(runs, tmp_path):
    run = shutil.copytree(runs / "lure", tmp_path / "run")
    given = ("lure", *SMALL, *QUICK, "--chunks", 2, "--start", runs / "transferred")
    said = slipstream("recipe", *given, "--resume", "--out", run, code=2).stderr
    assert "its start is another. Resume it with the same settings" in said
