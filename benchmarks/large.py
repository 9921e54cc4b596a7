"""Ports of large checkpoints: memory, time, what a kill costs; and the groups of a 70B model.

    python benchmarks/large.py --identity 7e9 --folder DISK --output benchmarks/results/large

Three folders of random weights are made, as of Llama: bfloat16, in sharded safetensors files. The
fine-tune moves every weight a little; the other base has its neurons in another order (rows and
columns of the feed-forward layers), so that `weights` has something to find. Each port runs in a
process of its own and is measured there: the highest resident memory less the files that are mapped
(`RssAnon`), what the system lists as resident at most, time on the wall and of the processor.
Copying a folder, the same bytes once more with `shutil`, is the measure for time.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import machine, machine_line, table, write
from slipstream.porting import FineTune, PortPlan, port_checkpoint
from slipstream.porting.stored import write_tensors
from slipstream.pretrained import example_input_for, model_from_config
from slipstream.storage.strict_json import Checksum
from slipstream.storage.tensor_form import TensorForm
from slipstream.symmetry.tracing import find_neuron_groups

FOLDERS = ("from_base", "fine_tuned", "to_base")
SHARDS = 6  # files of a folder, about
METHODS = ("identity", "weights")


@dataclass(frozen=True)
class Shape:
    """A Llama-like architecture."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
        }

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors, by name."""
        head = self.hidden // self.heads
        found = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            parts = {
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.k_proj": (head * self.kv_heads, self.hidden),
                "self_attn.v_proj": (head * self.kv_heads, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "mlp.gate_proj": (self.inner, self.hidden),
                "mlp.up_proj": (self.inner, self.hidden),
                "mlp.down_proj": (self.hidden, self.inner),
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
            }
            found |= {f"model.layers.{layer}.{name}.weight": s for name, s in parts.items()}
        return found | {
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }


SEVENTY = Shape(80, 8192, 28672, 64, 8, 128256)  # Llama 3 70B


def shape_of(parameters: float) -> Shape:
    """Return Llama 2 7B, or one with fewer layers; below a billion parameters also narrower."""
    width = 4096 if parameters >= 1e9 else 1024 if parameters >= 5e7 else 256
    inner, vocabulary = width * 43 // 16, 32000 if width == 4096 else 4000
    per_layer = 4 * width**2 + 3 * width * inner
    layers = round((parameters - 2 * vocabulary * width) / per_layer)
    heads = width // 128
    return Shape(max(1, min(layers, 32)), width, inner, heads, heads, vocabulary)


def value_of(shape: Shape, name: str, role: str) -> Tensor:
    """A tensor of one of the three folders, the same whenever it is asked for."""
    index = list(shape.tensors).index(name)
    size = shape.tensors[name]

    def noise(seed: int, scale: float) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * seed + index)
        return torch.empty(size).uniform_(-scale, scale, generator=generator)

    if len(size) == 1:
        return torch.ones(size)
    value = noise(1, 0.03)
    if role == "fine_tuned":
        value += noise(2, 0.003)
    elif role == "to_base":
        value += noise(3, 0.015)
        if ".mlp." in name:
            layer = int(name.split(".")[2])
            order = torch.randperm(shape.inner, generator=torch.Generator().manual_seed(7 + layer))
            value = value[:, order] if "down_proj" in name else value[order]
    return value


def make_folder(folder: Path, shape: Shape, role: str) -> None:
    """Write one of the three folders, unless it is there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    forms = {name: TensorForm(size, "bfloat16") for name, size in shape.tensors.items()}
    most = sum(form.bytes for form in forms.values()) / SHARDS
    shards: list[list[str]] = [[]]
    for name, form in forms.items():
        if shards[-1] and sum(forms[n].bytes for n in shards[-1]) + form.bytes > most:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        write_tensors(
            folder / file,
            {name: forms[name] for name in names},
            lambda name: value_of(shape, name, role).to(torch.bfloat16),
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(shape.config))  # last: then it is whole


def idle() -> None:
    """In a process of its own: all that a port imports, and nothing else."""
    for name in ("transformers", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    time.sleep(1)
    print("{}")


def port_once(folder: Path, method: str, out: Path) -> None:
    """In a process of its own: port, and print what it took."""
    begin, processor = time.perf_counter(), time.process_time()
    result = port_checkpoint(
        out, FineTune(*(folder / name for name in FOLDERS)), plan=PortPlan(method)
    )
    told = {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        "matched": sum(layer.matched for layer in result.layers) / len(result.layers),
    }
    print(json.dumps(told))


def status_of(pid: int) -> dict[str, int]:
    """Memory of a process, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines if line.startswith(("RssAnon", "VmHWM")))
    return {part[0][:-1]: int(part[1]) * 1024 for part in parts}


def watched(command: list[str], *, kill_after: int | None = None, out: Path) -> dict[str, Any]:
    """Run a port and watch its memory; or kill it once so many of its files are whole."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # else freed memory is kept
    log = out.with_name(f".{out.name}.partial.jsonl")
    anonymous = resident = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        while process.poll() is None:
            found = status_of(process.pid)
            anonymous = max(anonymous, found.get("RssAnon", 0))
            resident = max(resident, found.get("VmHWM", 0))
            whole = log.read_bytes().count(b"\n") - 1 if log.is_file() else 0
            if kill_after is not None and whole >= kill_after:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return {}
            time.sleep(0.005)
        told = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"The port failed with {process.returncode}.")
    return {**json.loads(told.splitlines()[-1]), "anonymous": anonymous, "resident": resident}


def measured_port(folder: Path, method: str) -> dict[str, Any]:
    """Port by a method, once at a stretch and once after a kill."""
    out = folder / f"ported-{method}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--folder", str(folder), "--port", method]
    command += ["--threads", str(torch.get_num_threads())]
    at_once = watched(command, out=out)
    whole = checksums(out)
    shutil.rmtree(out)
    watched(command, kill_after=max(1, len(whole) // 2), out=out)
    after = watched(command, out=out)
    same = checksums(out) == whole
    shutil.rmtree(out)
    return {
        "method": method,
        **at_once,
        "files": len(whole),
        "seconds_after_a_kill": after["seconds"],
        "same_after_a_kill": same,
    }


def checksums(folder: Path) -> list[str]:
    """Of the files of weights in a folder."""
    return [Checksum.of_file(path) for path in sorted(folder.glob("*.safetensors"))]


def copying_seconds(folder: Path) -> float:
    """The time to copy a folder and flush it to the disk."""
    target = folder.with_name("copy")
    begin = time.perf_counter()
    shutil.copytree(folder, target)
    for path in target.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    shutil.rmtree(target)
    return seconds


def groups_of(shape: Shape) -> dict[str, Any]:
    """The neuron groups of a model without weights."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(shape.config))
        model = model_from_config(name)
    begin = time.process_time()
    groups = find_neuron_groups(model, example_input_for(model))
    return {
        "parameters": sum(value.numel() for value in model.parameters()),
        "seconds": time.process_time() - begin,
        "groups": len(groups),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """The tables."""
    idle, groups = found["idle"], found["groups"]
    header = ["method", "parameters", "folder GB", "s", "of copying", "processor s", "memory MB"]
    header += ["in largest layers", "s after a kill half-way", "the same to the bit"]
    rows = [
        [
            port["method"],
            f"{port['parameters'] / 1e9:.2f} billion",
            f"{port['folder_bytes'] / 1e9:.1f}",
            f"{port['seconds']:.0f}",
            f"{port['seconds'] / port['copying_seconds']:.1f}",
            f"{port['processor_seconds']:.0f}",
            f"{(port['anonymous'] - idle) / 1e6:.0f}",
            f"{(port['anonymous'] - idle) / port['largest_layer']:.1f}",
            f"{port['seconds_after_a_kill']:.0f}",
            "yes" if port["same_after_a_kill"] else "no",
        ]
        for port in found["ports"]
    ]
    return "\n".join(
        [
            "# Large checkpoints",
            "",
            machine_line(found["machine"]),
            "",
            table(header, rows),
            "",
            "Memory is what a port holds of its own at most, besides the "
            f"{idle / 1e6:.0f} MB of a process that has imported everything; files that are mapped "
            "are not counted, as the system drops them when it likes. The largest layer is counted "
            "in float32. Copying is `shutil.copytree` of a folder, flushed to the disk.",
            "",
            f"The neuron groups of a Llama 3 70B configuration ({groups['parameters'] / 1e9:.1f} "
            f"billion parameters, on the meta device): {groups['groups']} groups in "
            f"{groups['seconds']:.0f} s of processor time, proof included.",
        ]
    )


def of_size(folder: Path, parameters: float, method: str) -> dict[str, Any]:
    """Make the folders of a size, port them, and remove them."""
    shape = shape_of(parameters)
    for role in FOLDERS:
        make_folder(folder / role, shape, role)
    sizes = [torch.Size(size).numel() for size in shape.tensors.values()]
    found = {
        "shape": asdict(shape),
        "parameters": sum(sizes),
        "folder_bytes": 2 * sum(sizes),
        "largest_layer": 4 * max(sizes),
        "copying_seconds": copying_seconds(folder / FOLDERS[0]),
        **measured_port(folder, method),
    }
    shutil.rmtree(folder)
    return found


def parts(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured, one after the other."""
    idle = [sys.executable, __file__, "--port", "none"]
    shape = shape_of(1e6) if options.quick else SEVENTY
    ports = {
        method: partial(of_size, folder / method, getattr(options, method), method)
        for method in METHODS
    }
    return {
        "idle": lambda: watched(idle, out=folder)["anonymous"],
        "groups": lambda: groups_of(shape),
        **ports,
    }


def main() -> None:
    """Measure, print the tables and write them where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identity", type=float, default=1e9, help="parameters; 7e9 is Llama 2")
    parser.add_argument("--weights", type=float, default=1.5e8, help="parameters")
    parser.add_argument("--folder", type=Path, help="with room for five copies; to resume in")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="a small one instead of 70B")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.md and OUTPUT.json")
    parser.add_argument("--port", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.port == "none":
        idle()
        return
    if options.port:
        port_once(options.folder, options.port, options.folder / f"ported-{options.port}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        kept = folder / "large.json"  # what was measured before an interruption
        found = json.loads(kept.read_text()) if kept.is_file() else {"machine": machine()}
        for part, work in parts(options, folder).items():
            if part not in found:
                found[part] = work()
                kept.write_text(json.dumps(found))
    found["ports"] = [found.pop(method) for method in METHODS]
    write(options.output, as_markdown(found), found)


if __name__ == "__main__":
    main()
