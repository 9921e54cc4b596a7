"""What all benchmarks share: the machine they ran on, and how a table is written."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine_line(facts: dict[str, Any]) -> str:
    """Return the machine in a sentence."""
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"torch {facts['torch']}, Python {facts['python']}; load {facts['load']} at the start."
    )


def waiting_clock(device: str) -> Callable[[], float]:
    """Return a clock on the wall that first waits for what the device was told to do."""

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def write(output: Path | None, text: str, data: dict[str, Any]) -> None:
    """Print the text, and write OUTPUT.md and OUTPUT.json if an output is named."""
    print(text)
    if output:
        save(output, text, data)


def save(output: Path, text: str, data: dict[str, Any]) -> None:
    """Write OUTPUT.md and OUTPUT.json; whoever is killed meanwhile leaves the earlier ones."""
    output.parent.mkdir(parents=True, exist_ok=True)
    for ending, written in ((".md", text), (".json", json.dumps(data, indent=1))):
        file = output.with_suffix(ending)
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(written + "\n", encoding="utf-8")
        partial.replace(file)
