"""From sections to one self-contained HTML page, which loads nothing from the network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from slipstream.report.content import Section, plain
from slipstream.report.palette import ON_DARK, RUNS, run_colour
from slipstream.report.recorded_run import Shown
from slipstream.report.sections import QUESTIONS


def page_of(title: str, runs: Sequence[Shown], sections: Sequence[Section]) -> str:
    """Return a self-contained page; its security policy forbids the network and foreign scripts.

    Args:
        title: Its heading; shown as text, whatever is in it.
        runs: The runs that the sections are about.
        sections: In order.

    Returns:
        HTML.
    """
    plotly, script = asset("plotly-cartesian.min.js"), asset("page.js")
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            policy=policy(plotly, script),
            version=version("slipstream"),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=Markup(asset("page.css")),
            plotly=Markup(plotly),
            script=Markup(script),
            settings=settings(),
            runs=legend(runs),
            sections=sections,
            body=Markup("\n".join(section_html(section, runs=len(runs)) for section in sections)),
        )
    )


def section_html(section: Section, *, runs: int) -> str:
    """Return one section as HTML; the page's script draws its charts.

    Args:
        section: What to show.
        runs: How many runs are on the page: charts of single runs stand side by side.

    Returns:
        An element.
    """
    template = _environment().get_template("section.html")
    return template.render(section=section, runs=runs, columns=_columns(runs))


def legend(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return name, number and colour of each run."""
    return [
        {"name": shown.name, "number": shown.number, "colour": run_colour(shown.number)}
        for shown in runs
    ]


def view_html(root: str) -> str:
    """Return the page of the live view over a folder; its parts come from the server.

    Args:
        root: The name of the folder; shown as text.

    Returns:
        HTML.
    """
    questions = list(QUESTIONS.items())
    known = embedded({"on_dark": ON_DARK, "runs": RUNS, "questions": questions})
    template = _environment().get_template("view.html")
    return template.render(root=root, questions=questions, settings=known)


def settings() -> Markup:
    """Return the settings of a report's script."""
    return embedded({"on_dark": ON_DARK})


def embedded(value: Any) -> Markup:
    r"""Return content as JSON that may stand inside a script element.

    Example:
        >>> print(embedded(["</script>"]))
        ["\u003c/script\u003e"]
    """
    text = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def policy(*scripts: str) -> str:
    """Return a Content-Security-Policy: only these scripts run, and nothing is fetched."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _columns(runs: int) -> int:
    """Charts side by side."""
    return 2 if runs in (1, 2, 4) else 3


@cache
def asset(name: str) -> str:
    """Return the text of a style or script of the pages."""
    return files("slipstream.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("slipstream.report", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["json"] = embedded
    return environment
