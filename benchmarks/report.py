"""What does a report of a large run cost, and how quick is the live view with many runs?

The run has 100 snapshots of a network of a million weights, of a short training. The view shows 50
runs; a run is clicked, and the time is taken until its curves are drawn.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, machine_line, table, write
from slipstream.named_task import NamedTask
from slipstream.report.report import write_report
from slipstream.report.sections import Extras, Landscapes
from slipstream.training import TrainingPlan, record_training
from slipstream.trajectory import Trajectory

LARGE = NamedTask("mlp", "digits", width=935, options={"hidden_layers": 2}, batch_size=128)
SMALL = NamedTask("mlp", "digits", width=32, options={"hidden_layers": 2}, batch_size=64)
SNAPSHOTS, RUNS, CLICKS = 100, 50, 60
SECONDS = 5.0  # for each line and plane of the landscape
CLICK = """async ([row]) => {
  const begun = performance.now();
  row.querySelector("a").click();
  const name = row.dataset.id;
  const done = () => document.querySelector("#title").textContent === name
    && document.querySelectorAll("#run figure.lines").length > 1
    && !document.querySelector("#run figure.chart:not([data-drawn])");
  await new Promise(requestAnimationFrame);
  const answered = performance.now() - begun;
  while (!done()) await new Promise(requestAnimationFrame);
  return [answered, performance.now() - begun];
}"""
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory() as folder:
        report = reports(Path(folder), given.repeats)
        clicks = view(Path(folder))
    write(
        given.output,
        text_of(report, clicks, facts),
        {"machine": facts, "report": report, "view": clicks},
    )


def reports(folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Time and size of reports, each in the same process, one after the other."""
    rows = []
    for name, setup in (("small network", SMALL), ("a million weights", LARGE)):
        run = folder / name
        steps = len(setup.build().data)
        plan = TrainingPlan(epochs=-(-(SNAPSHOTS - 1) // steps), lr=0.05)
        record_training(setup.build(), plan, run_folder=run, keep="every:1")
        kept = folder / f"{name} cut"
        cut(run, kept)
        for landscape in (False, True):
            seconds, computing, size = [], [], 0
            for number in range(repeats):
                page = folder / f"{name} {landscape} {number}.html"
                begun, worked = time.perf_counter(), time.process_time()
                how = Landscapes(seconds=SECONDS) if landscape else None
                size = write_report([kept], page, extras=Extras(landscapes=how)).bytes
                seconds.append(time.perf_counter() - begun)
                computing.append(time.process_time() - worked)
            weights = sum(v.numel() for v in Trajectory.open(kept)[0].weights.values())
            rows.append(
                {
                    "run": name,
                    "weights": weights,
                    "snapshots": SNAPSHOTS,
                    "landscape": landscape,
                    "seconds": seconds,
                    "processor_seconds": computing,
                    "bytes": size,
                }
            )
    return rows


def cut(run: Path, kept: Path) -> None:
    """Copy a run with its first snapshots only."""
    shutil.copytree(run, kept)
    lines = (kept / "snapshots.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (kept / "snapshots.jsonl").write_text("".join(lines[:SNAPSHOTS]), encoding="utf-8")


def view(folder: Path) -> dict[str, Any]:
    """The time from a click on a run until its curves are drawn, in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    runs = folder / "runs"
    task = SMALL.build()
    record_training(task, TrainingPlan(5), run_folder=runs / "run-00", keep="every:10")
    for number in range(1, RUNS):
        shutil.copytree(runs / "run-00", runs / f"run-{number:02d}")
    code = "from slipstream.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(runs), "--port", "8266"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ})
    try:
        assert server.stdout is not None
        server.stdout.readline()
        with sync_playwright() as driver:
            path = shutil.which("chromium") or shutil.which("google-chrome")
            browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto("http://127.0.0.1:8266/")
            page.wait_for_function(
                "count => document.querySelectorAll('#runs tbody tr').length === count", arg=RUNS
            )
            taken = []
            for number in range(CLICKS + 1):
                row = page.query_selector_all("#runs tbody tr")[number * 7 % RUNS]
                taken.append(page.evaluate(CLICK, [row]))
                page.wait_for_timeout(300)  # as people do; the next click finds other work
            browser.close()
    finally:
        server.terminate()
        server.wait()
    answered, drawn = zip(*taken[1:], strict=True)
    return {"runs": RUNS, "first": taken[0], "answered": answered, "drawn": drawn}


def text_of(report: list[dict[str, Any]], clicks: dict[str, Any], facts: dict[str, Any]) -> str:
    """Return the tables."""
    header = ["report of", "weights", "snapshots", "landscape", "processor s", "seconds", "MB"]
    rows = [
        [
            row["run"],
            f"{row['weights']:,}",
            str(row["snapshots"]),
            "measured" if row["landscape"] else "no",
            *(
                f"{statistics.median(row[kind]):.1f} ({min(row[kind]):.1f} to {max(row[kind]):.1f})"
                for kind in ("processor_seconds", "seconds")
            ),
            f"{row['bytes'] / 1e6:.2f}",
        ]
        for row in report
    ]
    load = facts["load"]
    timed = []
    for name, at in (("answered", 0), ("drawn", 1)):
        taken = sorted(clicks[name])
        middle, high = statistics.median(taken), taken[int(0.95 * len(taken))]
        times = [middle, high, taken[-1], clicks["first"][at]]
        timed.append([name, *(f"{value:.0f}" for value in times)])
    first = ["ms", "median", "95 % are below", "slowest", "the first click"]
    return "\n\n".join(
        [
            "# A report, and the live view",
            f"Measured with `python benchmarks/report.py`. {machine_line(facts)}",
            "## A report",
            f"Median and range of {len(report[0]['seconds'])} reports. The page holds everything, "
            f"1.5 MB of it is plotly.js. With the landscape, a line and a plane may take about "
            f"{SECONDS:.0f} s each. Processor seconds are what this process computed, seconds are "
            "those on the clock: where others use the machine, they are larger.",
            table(header, rows),
            "## A click in the view",
            f"{clicks['runs']} runs, {len(taken)} clicks in a headless Chromium. Answered: from a "
            "click until the run is marked, its name stands above, and the frame is painted. "
            "Drawn: until its settings and all its curves are there. Motion and modes follow "
            "and may still be computed for the run before. Browser, server and all else "
            f"(load {load} at the start) share the machine.",
            table(first, timed),
        ]
    )


if __name__ == "__main__":
    main()
