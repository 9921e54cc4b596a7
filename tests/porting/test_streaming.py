"""Memory of the plain displacement: a few tensors, whatever the size of the model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slipstream.weights import add_to_

WIDTH, LAYERS = 1536, 8
LAYER_BYTES = WIDTH * WIDTH * 4
FILES = ("from_base", "fine_tuned", "to_base")
CHILD = """
import sys, threading, time
from pathlib import Path
from slipstream.porting import FineTune, PortPlan, port_checkpoint

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

def port(out, **files):
    port_checkpoint(out, FineTune(**files), plan=PortPlan("identity"))

folder, names = Path(sys.argv[1]), sys.argv[2:]
# Once in small, so that every library is there.
port(folder / "small-out.safetensors", **{n: folder / "small.safetensors" for n in names})
before, highest = resident(), 0

def watch():
    global highest
    while True:
        highest = max(highest, resident())
        time.sleep(0.0005)

threading.Thread(target=watch, daemon=True).start()
port(folder / "out.safetensors", **{n: folder / f"{n}.safetensors" for n in names})
print(max(highest, resident()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_the_plain_displacement_takes_less_than_three_layers(tmp_path):
    for number, name in enumerate(FILES):
        layer = torch.arange(WIDTH * WIDTH).view(WIDTH, WIDTH) % 7 + float(number)
        save_file(
            {f"{n}.weight": layer + n for n in range(LAYERS)}, tmp_path / f"{name}.safetensors"
        )
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "small.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path, *FILES],
        # Else the C library keeps what is freed, as much as it likes.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * LAYER_BYTES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [-1.0, 0.7])
def test_adding_another_type_is_what_torch_does(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(600, 1000, generator=generator)  # several pieces
    value = torch.randn(600, 1000, generator=generator).to(dtype)
    expected = target.clone().add_(value, alpha=scale)
    for given in (target.clone(), target.t().contiguous().t()):
        assert torch.equal(add_to_(given, value, scale=scale), expected)
