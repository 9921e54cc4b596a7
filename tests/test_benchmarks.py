"""Every benchmark runs, on its smallest setting."""

import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up_networks import write_resources

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PARTS = {  # of others
    *("ani_networks", "common", "compare_cases", "summary", "porting_cases", "training_time_cases"),
    *("faults_counted", "faults_hostile", "transfer_cases", "transfer_methods"),
    *("rotation_networks", "vision_families"),
}
RUNS = {  # "{data}" is the folder of small data sets, "{out}" where the tables go
    "checkpoint_prior": "work --quick --seeds 0",
    "complexity": "--seeds 2 --label-epochs 1 --frequency-seeds 2 --frequency-epochs 2",
    "compare mlp": "--only mlp",
    "compression": "",
    "averages": "--cifar10 {data} --text {data}/text.txt --seeds 1 --steps 20",
    "cost": "--mnist {data} --cifar10 {data} --text {data}/text.txt --repeats 1",
    "embedded": "--mnist {data} --seeds 1",
    "faults": "--kills 1 --interrupted 1 --flips 2 --files 2 --messages 2",
    "federated": "--rounds 3 --seeds 1 --limit 8",
    "federated_simulation": "--rounds 2",
    "gpu": "--cifar10 {data} --device cpu",
    "iterand": "--case digits --seeds 1",
    "landscape": "--mnist {data} --cifar10 {data} --layers 1",
    "large": "--identity 1e6 --weights 1e6 --quick",
    "matching assignments": "--only assignments --sizes 16",
    "matching llama": "--only llama --hidden 64",
    "matching rebasin": "--only rebasin --networks resnet18",
    "meta_ticket sinusoid": "--case sinusoid --seeds 1",
    "meta_ticket omniglot": "--omniglot {data} --case 5-way¬1-shot --width 1 --seeds 1",
    "meta_neuron": "--seeds 1 --epochs 1 --further 1 --generations 1",
    "modes": "--quick",
    "modes_accuracy": "--case digits --seeds 2",
    "nowcasting": "--mnist {data} --text {data}/text.txt --seeds 1 --steps 60",
    "operators": "--work work --seeds 2 --pretraining 1 --epochs 1",
    "pictures": "",
    "porting mlp": "--mnist {data} --cases mlp,¬other¬classes --pairs 1",
    "porting gpt": "--text {data}/text.txt --cases gpt,¬one¬play --pairs 1",
    "pseudo_transfer": (
        "--mnist {data} --omniglot {data} --cifar10 {data} --labels 1 --labels 5 --seeds 1"
    ),
    "random_networks": "--count 3",
    "real_networks": "{data}/resources --ports all --labels 8",
    "recipes": "--seeds 2",
    "reconstruction": "--seeds 1 --epochs 1 --only decay,¬tanh",
    "recording": "--quick",
    "report": "--repeats 1",
    "routed_pretraining": "--omniglot {data} --mnist {data} --cifar10 {data} --seeds 2",
    "rotations": ("--cifar10 {data} --text {data}/text.txt --networks kept --steps 2 --training 2"),
    "sharded": "--width 16 --snapshots 2 --processes 1 2",
    "subspace": "--case noisy --case clean-batchnorm --seeds 1",
    "symmetry": "--only mlp",
    "symmetry large": "--large Llama¬3¬8B",
    "symmetry families": "--families torchvision¬squeezenet1_0",
    "symmetry_peers": "torch-pruning mlp",
    "training_time": "--case vit --case batches¬of¬30 --case cosine --seeds 1",
    "transfer methods": "methods --case digits-2 --pairs 1",
    "transfer vit": "methods --case mnist-vit --mnist {data} --pairs 1 --only adam",
    "transfer gpt": "methods --case text-gpt --text {data}/text.txt --pairs 1 --only distillation",
    "transfer steps": "steps --case digits-2 --pairs 1",
    "transfer sensitivity": "sensitivity --case digits-2 --pairs 1",
    "transfer ensembles": "ensembles --case digits-2 --pairs 2",
}
NEEDS = {
    "nowcasting": "transformers",
    "federated_simulation": "ray",
    "gpu": "transformers",
    "matching rebasin": "torchvision",
    "pictures": "playwright",
    "report": "playwright",
    "symmetry": "transformers",
    "transfer gpt": "transformers",
    "transfer vit": "transformers",
    "symmetry large": "transformers",
    "symmetry families": "torchvision",
    "symmetry_peers": "torch_pruning",
}
WITHOUT_OUTPUT = ("symmetry_peers", "symmetry large")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data sets and networks in their usual layouts: noise, and little of it."""
    folder = tmp_path_factory.mktemp("data")
    drawn = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 60)):
        images = drawn.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            sizes = np.array(values.shape, dtype=">u4").tobytes()
            head = bytes((0, 0, 8, values.ndim)) + sizes
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
    (folder / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        images = drawn.integers(0, 256, (60, 3072), dtype=np.uint8)
        batch = {"data": images, "labels": [number % 10 for number in range(60)]}
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch))
    alphabets = ["Greek", *(f"Script{number}" for number in range(6))]
    for part, names in (("background", alphabets), ("evaluation", ["Latin"])):
        for path in (f"{alphabet}/character{n:02}" for alphabet in names for n in range(1, 7)):
            at = folder / f"images_{part}" / path
            at.mkdir(parents=True)
            for drawing in range(20):
                Image.fromarray(drawn.integers(0, 256, (28, 28), dtype=np.uint8)).save(
                    at / f"{drawing:02}.png"
                )
    line = "what light through yonder window breaks, it is the east\n"
    play = "ROMEO:\n" + 150 * line + "ROMEO:\n"
    write_resources(folder / "resources", members=2)
    (folder / "text.txt").write_text(40 * line + play + 40 * line, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs(name, data, tmp_path):
    needed = NEEDS.get(name)
    if needed and not find_spec(needed):
        pytest.skip(f"needs {needed}")
    if needed == "playwright" and not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs Chromium")
    script, *_ = name.split()
    output = tmp_path / "tables"
    arguments = [
        word.replace("¬", " ").format(data=data)  # "¬" is a space within an argument
        for word in RUNS[name].split()
    ]
    if name not in WITHOUT_OUTPUT:
        arguments += ["--output", output]
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmark_settings.py", script, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    if name not in (*WITHOUT_OUTPUT, "pictures"):
        assert output.with_suffix(".md").read_text(encoding="utf-8").startswith("# ")
        assert output.with_suffix(".json").stat().st_size > 0


def test_every_benchmark_has_a_smallest_setting():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - PARTS
    assert scripts == {name.split()[0] for name in RUNS}
