"""Importing what other tools write, in their own layouts."""

import json
import logging

import pytest
import torch
from recorded_networks import tied
from safetensors.torch import save_file, save_model

from slipstream.trajectory import Trajectory, check_run, import_run
from slipstream.trajectory.step_names import steps_in


def weights(value=0.0):
    return {"a.w": torch.full((2, 3), float(value)), "a.b": torch.full((4,), -float(value))}


def named(prefix, value):
    return {prefix + name: tensor for name, tensor in weights(value).items()}


class Code:
    """Unpickling this would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def test_pickled_files_in_the_order_of_their_numbers(source):
    torch.save(weights(2), source / "epoch_2.pt")
    torch.save(weights(10), source / "epoch_10.pth")
    torch.save(weights(1), source / "epoch_1.pt", _use_new_zipfile_serialization=False)
    run = import_run(source, configuration={"rate": 1}, seed=4)
    assert run.steps == [1, 2, 10]
    assert run["a.w"][:, 0, 0].tolist() == [1, 2, 10]
    assert run.names == ("a.w", "a.b")
    assert (run.description["configuration"], run.description["seed"]) == ({"rate": 1}, 4)
    assert check_run(source.with_name("checkpoints-run")) == []


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module", "ema"])
def test_the_state_dict_is_found_under_the_usual_keys(source, key):
    torch.save({"optimizer": {"lr": 0.1}, key: weights(3)}, source / "3.pt")
    if key == "ema":
        with pytest.raises(
            ValueError, match=r"No weights .*3.pt. It holds optimizer, ema: pass key"
        ):
            import_run(source)
        with pytest.raises(ValueError, match=r"no key 'emma'; it has optimizer, ema"):
            import_run(source, key="emma")
    run = import_run(source, key="ema" if key == "ema" else None)
    assert run[0].weights["a.b"].tolist() == [-3.0] * 4


def test_lightning(source):
    for step in (50, 100):
        torch.save(
            {
                "epoch": step // 50,
                "global_step": step,
                "pytorch-lightning_version": "2.5.0",
                "state_dict": named("model.", step) | {"loss.weight": torch.ones(1)},
                "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
            },
            source / f"version={7 - step // 50}.ckpt",
        )
    run = import_run(source, prefix="model.")
    assert run.steps == [50, 100]
    assert [snapshot.epoch for snapshot in run] == [1, 2]
    assert run.names == ("a.w", "a.b")
    assert run["a.w"][:, 1, 2].tolist() == [50, 100]
    with pytest.raises(
        ValueError, match=r"No tensor in .* starts with prefix 'net.'; there are mod"
    ):
        import_run(source, source.with_name("other"), prefix="net.")


def hugging_face(folder, step, *, shards, suffix="safetensors"):
    """A checkpoint folder as transformers writes it."""
    folder.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    save = save_file if suffix == "safetensors" else torch.save
    if shards:
        parts = {f"{stem}-{n:05}-of-00002.{suffix}": {name: value}
                 for n, (name, value) in enumerate(weights(step).items(), start=1)}  # fmt: skip
        places = {name: file for file, part in parts.items() for name in part}
        index = {"metadata": {"total_size": 40}, "weight_map": places}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    else:
        parts = {f"{stem}.{suffix}": weights(step)}
    for file, part in parts.items():
        save(part, folder / file)
    history = [{"step": 1, "loss": 9.0}, {"step": step, "loss": step / 2, "epoch": 0.5}]
    state = {"global_step": step, "epoch": 0.5, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    torch.save({"state": {}}, folder / "optimizer.pt")
    (folder / "training_args.bin").write_bytes(b"pickle")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [False, True])
def test_hugging_face_folders(source, shards, suffix):
    for step in (100, 20):
        hugging_face(source / f"checkpoint-{step}", step, shards=shards, suffix=suffix)
    save_file(weights(100), source / "model.safetensors")  # save_model() after training
    run = import_run(source)
    assert run.steps == [20, 100]
    assert run["a.w"][:, 0, 0].tolist() == [20, 100]
    assert run["a.b"][:, 0].tolist() == [-20, -100]
    assert run[1].weights["a.b"].tolist() == [-100.0] * 4
    assert [dict(snapshot.metrics) for snapshot in run] == [{"loss": 10.0}, {"loss": 50.0}]
    assert run[0].epoch == pytest.approx(0.5)


def test_one_hugging_face_folder_is_one_snapshot(source):
    hugging_face(source / "checkpoint-7", 7, shards=True)
    assert import_run(source / "checkpoint-7", source / "run").steps == [7]


def test_a_missing_shard_is_named(source):
    hugging_face(source / "checkpoint-7", 7, shards=True)
    (source / "checkpoint-7/model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"shard 'model-00002-of-00002.safetensors' .* is missing"):
        import_run(source)


def test_safetensors_are_not_copied(source, tmp_path):
    big = {"w": torch.zeros(300_000)}
    for step in (1, 2):
        save_file(big | {"n": torch.tensor(step)}, source / f"step_{step}.safetensors")
    run = tmp_path / "run"
    assert import_run(source, run)["n"].tolist() == [1, 2]
    assert sum(file.stat().st_size for file in run.rglob("*") if file.is_file()) < 3000
    # The run and what it points to may move together,
    moved = tmp_path / "moved"
    moved.mkdir()
    run.rename(moved / "run")
    source.rename(moved / "checkpoints")
    assert Trajectory.open(moved / "run")["n"].tolist() == [1, 2]
    # and a run elsewhere points to where they are.
    elsewhere = tmp_path / "else/where/run"
    import_run(moved / "checkpoints", elsewhere)
    elsewhere.rename(tmp_path / "far")
    assert Trajectory.open(tmp_path / "far")["n"].tolist() == [1, 2]


def test_a_prefix_is_cut_off_safetensors_too(source):
    for step in (1, 2):
        save_file(named("module.", step) | {"x": torch.ones(1)}, source / f"{step}.safetensors")
    run = import_run(source, prefix="module.")
    assert run["a.b"][:, 0].tolist() == [-1, -2]
    assert run[1].weights.keys() == {"a.w", "a.b"}


def test_mixed_kinds_with_a_prefix(source):
    save_file(named("module.", 1), source / "1.safetensors")
    torch.save(named("module.", 2), source / "2.pt")
    assert import_run(source, prefix="module.")["a.w"][:, 0, 0].tolist() == [1, 2]


def test_tied_tensors_are_stored_once(source):
    for seed in (1, 2):
        torch.save(tied(seed).state_dict(), source / f"{seed}.pt")
    run = import_run(source)
    assert run.layout.aliases == {"decoder.weight": "encoder.weight"}
    assert torch.equal(run["decoder.weight"][1], tied(2).encoder.weight)


def test_steps_by_hand(source):
    for name in ("first", "best"):
        torch.save(weights(len(name)), source / f"{name}.pt")
    with pytest.raises(ValueError, match=r"names best.pt, first.pt .* pass steps={'best.pt': 0"):
        import_run(source)
    with pytest.raises(ValueError, match=r"steps names 'last.pt'; .* holds best.pt, first.pt"):
        import_run(source, steps={"last.pt": 1})
    run = import_run(source, steps={"first.pt": 0, "best.pt": 900})
    assert run.steps == [0, 900]
    assert run["a.w"][:, 0, 0].tolist() == [5, 4]


def test_what_has_no_number_among_numbers_is_left_out_aloud(source, caplog):
    for name in ("1", "2", "best"):
        torch.save(weights(), source / f"{name}.pt")
    with caplog.at_level(logging.WARNING):
        assert import_run(source).steps == [1, 2]
    assert "Left out, no number in the name: best.pt" in caplog.text


def test_two_of_one_step_are_named(source):
    for shift, name in enumerate(("model_1", "optimizer_1")):
        torch.save({n: v + shift for n, v in weights().items()}, source / f"{name}.pt")
    with pytest.raises(ValueError, match=r"model_1.pt and optimizer_1.pt both count as step 1"):
        import_run(source)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_another_layout_names_step_tensor_and_both_shapes(source, kind):
    save = torch.save if kind == "pt" else save_file
    save(weights(), source / f"1.{kind}")
    save(weights() | {"a.w": torch.zeros(2, 5)}, source / f"2.{kind}")
    with pytest.raises(ValueError, match=r"step 2.*'a.w' is \(2, 5\) float32, expected \(2, 3\)"):
        import_run(source)
    assert [path.name for path in source.parent.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("name", ["1.pt", "3.ckpt"])
def test_code_is_refused_and_not_run(source, tmp_path, name):
    torch.save(weights(), source / "2.pt")
    torch.save(
        {"state_dict": weights(), "hyper_parameters": Code(tmp_path / "made")}, source / name
    )
    with pytest.raises(ValueError, match=rf"{name} is refused: besides tensors it holds \S*exec"):
        import_run(source)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_damaged_files_are_named(source):
    torch.save(weights(), source / "1.pt")
    (source / "2.pt").write_bytes((source / "1.pt").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"2.pt cannot be read|2.pt is not a file of torch.save"):
        import_run(source)
    (source / "2.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"2.pt"):
        import_run(source)
    assert [path.name for path in source.parent.iterdir()] == ["checkpoints"]


def test_what_cannot_be_imported_says_why(source, tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoints: neither files ending in .pt"):
        import_run(source)
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        import_run(tmp_path / "nowhere")
    torch.save(weights(), source / "1.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"full is not empty"):
        import_run(source, tmp_path / "full")


def test_nan_is_imported_as_it_is(source):
    torch.save({"w": torch.tensor([float("nan"), 1.0])}, source / "1.pt")
    assert import_run(source)["w"].isnan().tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("epoch=3-step=1200.ckpt", 1200),
        ("step_40_loss_2.pt", 40),
        ("checkpoint-500", 500),
        ("resnet18_7.pth", 7),
        ("iter0009.safetensors", 9),
        ("model.v2", None),
        ("best.pt", None),
    ],
)
def test_the_number_in_a_name(name, number):
    assert steps_in([name]) == {name: number}


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["epoch_1_loss_0.90.pt", "epoch_2_loss_0.25.pt"], [1, 2]),
        (["weights.01-0.93.pth", "weights.02-0.33.pth"], [1, 2]),
        (["ep1_resnet18.pt"], [1]),
        (["model_9e2.pt", "model_1e3.pt"], [900, 1000]),
        (["ckpt_900.pt", "ckpt_1k.pt", "ckpt_2.5k.pt"], [900, 1000, 2500]),
        (["step-900.pt", "step-1,000.pt"], [900, 1000]),
        (["resnet50_acc0.71_ep12.pth"], [12]),
        (["acc_0.95-step_7.pt", "acc_0.5-step_8.pt"], [7, 8]),
        (["checkpoint-3-of-gpt2.pt"], [3]),
        (["best.pt", "run_3.pt"], [None, 3]),
        (["acc_91.pt", "val-loss-2.pt", "seed_1.pt", "model_v2.pt"], [None] * 4),
        (["epoch_3_acc_95.pt", "best_acc_97.pt", "resnet18.pt"], [3, None, None]),
        (["epoch_1_of_10.pt", "epoch_2_of_10.pt"], [1, 2]),
    ],
)
def test_the_steps_of_a_folder_of_names(names, steps):
    assert list(steps_in(names).values()) == steps


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["run_3_7.pt"], "several numbers"),
        (["2024-11-05.pt"], "several numbers"),
        (["step_100.pt", "epoch_2.pt"], "Some of the names"),
        (["epoch_1.pt", "epoch_2.pt", "checkpoint-500"], "Some of the names"),
        (["epoch_1.pt", "1000.pt"], "Some of the names"),
        (["step_900.pt", "step_1_000.pt"], "behind each other"),
    ],
)
def test_what_names_do_not_tell_is_asked_for(names, words):
    with pytest.raises(ValueError, match=words):
        steps_in(names)


def test_one_file_of_many_kinds_is_imported(tmp_path):
    torch.save({"state_dict": named("", 1)}, tmp_path / "checkpoint-1.pth.tar")
    assert import_run(tmp_path / "checkpoint-1.pth.tar", tmp_path / "one").steps == [1]
    torch.save(named("", 1), tmp_path / "best.pt")
    assert import_run(tmp_path / "best.pt", tmp_path / "best").steps == [0]


def test_twins_count_once(source, tmp_path, caplog):
    held = {"state_dict": named("", 3), "global_step": 30}
    for name in ("epoch=2-step=30.ckpt", "last.ckpt"):
        torch.save(held, source / name)
    assert import_run(source, tmp_path / "run").steps == [30]
    assert "last.ckpt is the same as" in caplog.text
    torch.save(held | {"state_dict": named("", 4)}, source / "last.ckpt")
    with pytest.raises(ValueError, match="both count as step 30"):
        import_run(source, tmp_path / "other")


def test_prefixes_of_wrappers_are_cut_off(source, tmp_path, caplog):
    torch.save(named("_orig_mod.module.", 1), source / "1.pt")
    assert set(import_run(source, tmp_path / "run").names) == set(named("", 1))
    assert "'_orig_mod.module.'" in caplog.text


def test_tied_names_of_save_model_are_aliases(source, tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.decoder = torch.nn.Linear(3, 5, bias=False)
            self.decoder.weight = self.embed.weight

    save_model(Tied(), str(source / "step1.safetensors"))
    Tied().load_state_dict(import_run(source, tmp_path / "run")[0].state_dict())


def test_two_files_with_one_tensor_are_refused(source, tmp_path):
    for number in (1, 2):
        save_file(
            {"w": torch.ones(2), f"v{number}": torch.ones(1)}, source / f"{number}.safetensors"
        )
    weights = {"w": "1.safetensors", "v1": "1.safetensors", "v2": "2.safetensors"}
    index = json.dumps({"weight_map": weights})
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="two files hold the same part of tensor 'w'"):
        import_run(source, tmp_path / "run")


def test_tensors_of_other_layouts_are_read_or_refused_in_words(source):
    held = {"s": torch.eye(3).to_sparse(), "c": torch.tensor([1 + 2j]).conj()}
    torch.save(held, source / "1.pt")
    run = import_run(source)
    torch.testing.assert_close(run[0].weights["s"], torch.eye(3))
    torch.testing.assert_close(run[0].weights["c"], torch.tensor([1 - 2j]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["meta", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_plain_values_are_refused_in_words(source, make):
    torch.save({"w": make()}, source / "1.pt")
    with pytest.raises(ValueError, match=r"1\.pt is refused: the tensor 'w'"):
        import_run(source)


def test_two_tensors_of_the_same_name_in_one_file_are_refused(source):
    torch.save({0: torch.ones(2), "0": torch.zeros(2)}, source / "1.pt")
    with pytest.raises(ValueError, match="same name"):
        import_run(source)


def test_a_damaged_safetensors_file_is_named(source):
    (source / "1.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.safetensors holds no safetensors checkpoint"):
        import_run(source)
