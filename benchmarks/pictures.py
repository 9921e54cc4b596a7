"""The pictures of the README and the documentation, drawn again.

`transfer.png` is what `slipstream demo` draws; `motion.png`, `modes.png` and `plane.png` are
figures of its run; the others show a report of its runs in a headless Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from slipstream import Trajectory
from slipstream.demo import run_demo
from slipstream.dynamics import find_phases, measure_motion, principal_path
from slipstream.modes import fit_modes
from slipstream.report.figures import plot_modes, plot_motion, plot_runs
from slipstream.report.recorded_run import RecordedRun, shown
from slipstream.report.report import write_report
from slipstream.report.sections import Extras, Landscapes

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
MOST = 200_000  # bytes of a picture
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run")
SHOTS = {  # what is seen of the report, and how high
    "report.png": ("body", 980),
    "report-motion.png": ("#motion", 1060),
}


def main() -> None:
    """Draw, and write them beside the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=PICTURES)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = run_demo(folder)
        shutil.copyfile(demo.figure, output / "transfer.png")
        transferred = transfer(demo.run, folder / "transferred")
        page = folder / "report.html"
        draw(demo.run, output)
        write_report(
            [demo.run, transferred], page, extras=Extras(landscapes=Landscapes(seconds=20))
        )
        shoot(page, output)
    for picture in sorted(output.glob("*.png")):
        size = picture.stat().st_size
        print(f"{picture}: {size / 1e3:.0f} kB")
        if size > MOST:
            raise SystemExit(f"{picture} is larger than {MOST / 1e3:.0f} kB.")


def transfer(run: Path, to: Path) -> Path:
    """Transfer a run to one new start."""
    code = "from slipstream.cli import main; main()"
    words = ["transfer", run, "--seed", "7", "--out", to]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)
    return to


def draw(run: Path, output: Path) -> None:
    """Draw figures of a run, as the commands do."""
    trajectory = Trajectory.open(run)
    motion = measure_motion(trajectory)
    path = principal_path(trajectory, components=2)
    found = {
        "motion.png": plot_motion(motion.by_layer(), phases=find_phases(motion), path=path),
        "modes.png": plot_modes(fit_modes(trajectory, modes=5, samples=120)),
        "plane.png": plot_runs(
            "plane", shown([RecordedRun.open(run)]), extras=Extras(landscapes=Landscapes())
        ),
    }
    for name, figure in found.items():
        figure.savefig(output / name, dpi=80)


def shoot(page: Path, output: Path) -> None:
    """Take pictures of parts of a page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.goto(page.as_uri())
        tab.add_style_tag(content="nav { position: static !important; }")
        for name, (part, height) in SHOTS.items():
            tab.locator(part).scroll_into_view_if_needed()
            tab.wait_for_timeout(1500)  # charts are drawn when they come near the screen
            box = tab.locator(part).bounding_box()
            assert box is not None
            clip = {"x": 0, "y": box["y"] + tab.evaluate("scrollY"), "width": 1200}
            tab.screenshot(
                path=output / name, full_page=True, clip={**clip, "height": height},
            )  # fmt: skip
        browser.close()


if __name__ == "__main__":
    main()
