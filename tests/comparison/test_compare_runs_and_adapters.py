"""What runs, names of files and adapters tell, and the memory that it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from descendants import network, trained, weights
from safetensors.torch import save_file

from slipstream.comparison import compare_checkpoints
from slipstream.trajectory import Trajectory, create_run

MODEL = trained(network())
BASE = weights(MODEL)
NUMBERED = ("step-10", "step-20", "seed-30")


def run_of(path, snapshots):
    with create_run(path, model=network()) as writer:
        for step, held in snapshots.items():
            writer.append(step=step, weights=held)
    return path


def test_snapshots_of_one_run(tmp_path):
    later = weights(trained(MODEL, 20))
    run = run_of(tmp_path / "run", {0: BASE, 20: later})
    found = compare_checkpoints([run, f"{run}@0"]).pairs[0]
    assert found.relation == "snapshots of one run"
    assert (found.certainty, found.parent) == ("proven", "run@0")
    with pytest.raises(ValueError, match="Step 7 was not kept"):
        compare_checkpoints([run, f"{run}@7"])


def test_a_run_that_starts_at_a_file_is_its_fine_tune(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    run = run_of(tmp_path / "run", {0: BASE, 20: weights(trained(MODEL, 20))})
    found = compare_checkpoints([tmp_path / "base.safetensors", run]).pairs[0]
    assert (found.relation, found.certainty) == ("fine-tune", "proven")
    assert found.parent == "base.safetensors"
    held = compare_checkpoints({"base": BASE, "run": Trajectory.open(run)}).pairs[0]
    assert (held.relation, held.parent) == ("fine-tune", "base")


def test_a_file_that_is_a_snapshot_in_the_middle(tmp_path):
    middle = weights(trained(MODEL, 10))
    run = run_of(tmp_path / "run", {0: BASE, 10: middle, 20: weights(trained(MODEL, 20))})
    found = compare_checkpoints({"run": run, "file": middle}).pairs[0]
    assert (found.relation, found.parent) == ("snapshots of one run", "file")


def test_runs_from_one_start_are_siblings(tmp_path):
    runs = [
        run_of(tmp_path / f"run-{n}", {0: BASE, 20: weights(trained(MODEL, 20, seed=n))})
        for n in (1, 2)
    ]
    found = compare_checkpoints(runs).pairs[0]
    assert (found.relation, found.certainty) == ("siblings", "proven")
    single = run_of(tmp_path / "single", {20: weights(trained(MODEL, 20, seed=1))})
    assert compare_checkpoints([single, runs[0]]).pairs[0].relation == "identical"


def test_numbered_checkpoints_in_one_folder(tmp_path):
    for n, name in enumerate(NUMBERED, start=1):
        save_file(weights(trained(MODEL, 10 * n)), tmp_path / f"{name}.safetensors")
    first, second, other = (
        tmp_path / f"{n}.safetensors" for n in ("step-10", "step-20", "seed-30")
    )
    found = compare_checkpoints([second, first]).pairs[0]
    assert (found.relation, found.certainty) == ("snapshots of one run", "likely")
    assert found.parent == "step-10.safetensors"
    assert compare_checkpoints([first, other]).pairs[0].relation == "fine-tune or siblings"


def adapter(folder, base, *, seed=0, named=True):
    torch.manual_seed(seed)
    folder.mkdir()
    down, up = torch.randn(2, 24), torch.randn(24, 2)
    keys = {"base_model.model.3.lora_A.weight": down, "base_model.model.3.lora_B.weight": up}
    save_file(keys, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 2, "r": 2, "target_modules": ["3"]}
    config["base_model_name_or_path"] = str(base) if named else None
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_are_fine_tunes_of_their_base_and_siblings(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file(BASE, base / "model.safetensors")
    first, second = (adapter(tmp_path / f"lora-{n}", base, seed=n) for n in (1, 2))
    found = compare_checkpoints([base, first, second])
    assert found.pair("base", "lora-1").relation == "fine-tune"
    assert found.pair("base", "lora-1").parent == "base"
    assert found.pair("base", "lora-1").certainty == "proven"
    assert found.pair("lora-1", "lora-2").relation == "siblings"
    layer = next(x for x in found.pair("base", "lora-2").layers if not x.frozen)
    assert (layer.name, layer.rank) == ("3.weight", 2)
    alone = compare_checkpoints([first, second]).pairs[0]
    assert alone.relation == "siblings"


def test_an_adapter_without_its_base(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    lost = adapter(tmp_path / "lora", "somewhere/else", seed=1)
    other = adapter(tmp_path / "other", "somewhere/else", seed=2, named=False)
    found = compare_checkpoints([tmp_path / "base.safetensors", lost])
    assert found.pairs[0].relation == "fine-tune"
    with pytest.raises(ValueError, match="give the base's folder"):
        compare_checkpoints([lost, other])


def test_damaged_adapters_and_steps_of_files_are_named(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*empty holds no weights"):
        compare_checkpoints([tmp_path / "base.safetensors", empty])
    (empty / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json of .*empty is damaged"):
        compare_checkpoints([tmp_path / "base.safetensors", empty])
    with pytest.raises(ValueError, match=r"names step 3, but .* is not a run folder"):
        compare_checkpoints([tmp_path / "base.safetensors", f"{tmp_path / 'base.safetensors'}@3"])


def test_files_without_weights_say_what_to_do(tmp_path):
    save_file(BASE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"its config.json is damaged"):
        compare_checkpoints([BASE, tmp_path])
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pt is not a file of torch.save"):
        compare_checkpoints([BASE, tmp_path / "text.pt"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"holds a list: save the state dict alone"):
        compare_checkpoints([BASE, tmp_path / "list.pt"])


def test_one_file_twice_has_two_short_names(tmp_path):
    save_file(BASE, tmp_path / "model.safetensors")
    found = compare_checkpoints([tmp_path / "model.safetensors"] * 2)
    assert found.names == ("model.safetensors (1)", "model.safetensors (2)")


def test_a_run_of_one_snapshot_is_a_checkpoint(tmp_path):
    run = run_of(tmp_path / "run", {20: BASE})
    near = weights(trained(MODEL, 20))
    assert compare_checkpoints({"run": run, "same": BASE}).pairs[0].relation == "identical"
    found = compare_checkpoints({"run": run, "near": near}).pairs[0]
    assert found.relation == "fine-tune or siblings"


def test_quantised_files_are_refused(tmp_path):
    whole = torch.zeros(4, 4, dtype=torch.int8)
    save_file({"w": whole, "w.SCB": torch.ones(4)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is quantised"):
        compare_checkpoints([tmp_path / "a.safetensors", BASE])


WIDTH, LAYERS = 2048, 8
CHILD = """
import sys, threading, time
from pathlib import Path
from slipstream.comparison import compare_checkpoints

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

folder = Path(sys.argv[1])
compare_checkpoints([folder / "small-a.safetensors", folder / "small-b.safetensors"])
before, highest = resident(), 0

def watch():
    global highest
    while True:
        highest = max(highest, resident())
        time.sleep(0.0005)

threading.Thread(target=watch, daemon=True).start()
found = compare_checkpoints([folder / "a", folder / "b"]).pairs[0]
print(found.relation)
print(max(highest, resident()) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_two_sharded_folders_take_the_memory_of_a_few_layers(tmp_path):
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        index = {}
        for n in range(LAYERS):
            torch.manual_seed(n)
            layer = torch.randn(WIDTH, WIDTH)
            torch.manual_seed(100 + n)
            layer += number * 0.01 * torch.randn(WIDTH, WIDTH)
            file = f"model-{n + 1:05}-of-{LAYERS:05}.safetensors"
            index[f"{n}.weight"] = file
            save_file({f"{n}.weight": layer}, tmp_path / name / file)
        listed = json.dumps({"weight_map": index})
        (tmp_path / name / "model.safetensors.index.json").write_text(listed)
        small = {f"{n}.weight": torch.randn(2, 300, 300)[0] for n in range(2)}
        save_file(small, tmp_path / f"small-{name}.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path],
        # Else the C library keeps what is freed, as much as it likes.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    relation, taken = done.stdout.split("\n")[:2]
    assert relation == "fine-tune or siblings"
    # All of both are 16 layers; samples and blocks have a size of their own.
    assert int(taken) < 8 * WIDTH * WIDTH * 4
