import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from commands import complaint, slipstream
from report.recorded import walk
from slipstream.report.page import asset, embedded
from slipstream.report.report import write_report

NASTY = "<b>x<script>alert(1)<"


class Reader(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.texts = [], [], []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        else:
            self.texts.append(data)


def page(tmp_path, *names):
    folders = [walk(tmp_path / name, seed=n) for n, name in enumerate(names)]
    report = write_report(folders, tmp_path / "report.html")
    return report, Reader((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_page_asks_the_network_for_nothing(tmp_path):
    report, found = page(tmp_path, "run")
    assert report.bytes < 2e6
    assert not [a for _, a in found.tags if "src" in a or a.get("href", "#")[0] != "#"]
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src" not in policy


def test_only_its_own_scripts_may_run(tmp_path):
    _, found = page(tmp_path, NASTY)
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    run = [text for kind, text in found.scripts if kind is None]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in run]
    assert hashes == allowed
    assert run == [asset("plotly-cartesian.min.js"), asset("page.js")]


def test_a_name_with_html_in_it_is_text(tmp_path):
    _, found = page(tmp_path, NASTY, "other")
    assert "b" not in {tag for tag, _ in found.tags}
    assert any(NASTY in text for text in found.texts)
    charts = [json.loads(text) for kind, text in found.scripts if kind == "application/json"]
    assert any(NASTY in chart.get("title", "") for chart in charts)


def test_charts_have_a_reading_and_their_data(tmp_path):
    _, found = page(tmp_path, "run")
    figures = [a["class"] for tag, a in found.tags if tag == "figure"]
    charts = [json.loads(t) for kind, t in found.scripts if kind == "application/json"][:-1]
    assert len(charts) == sum("chart" in names for names in figures)
    assert all(chart["reading"].endswith(".") for chart in charts)
    buttons = [a.get("data-action") for tag, a in found.tags if tag == "button"]
    assert buttons.count("csv") == len(figures)


def test_embedded_json_cannot_end_its_script():
    text = str(embedded({"name": "</script><!-- & "}))
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": "</script><!-- & "}


def test_a_page_is_not_overwritten_and_runs_are_named_once(tmp_path):
    report, _ = page(tmp_path, "run")
    with pytest.raises(FileExistsError, match="already there"):
        write_report([tmp_path / "run"], report.path)
    write_report([tmp_path / "run"], report.path, overwrite=True, title="Again")
    assert "<h1>Again</h1>" in report.path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="twice"):
        write_report([tmp_path / "run", tmp_path / "run" / ".." / "run"], tmp_path / "b.html")
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path / "b.html")


def test_the_command_writes_the_page(tmp_path):
    walk(tmp_path / "run")
    out = tmp_path / "page.html"
    words = ["report", tmp_path / "run", "-o", out, "--no-landscape", "--json"]
    done = slipstream(*words)
    assert json.loads(done.stdout) == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "runs": ["run"],
    }
    assert "already there" in complaint(slipstream(*words, code=2))


def test_a_comparison_and_landscapes_may_be_passed_one_by_one_as_in_0_1(tmp_path):
    walk(tmp_path / "run")
    found = write_report([tmp_path / "run"], tmp_path / "new.html")
    with pytest.warns(DeprecationWarning, match="write_report takes extras now"):
        write_report([tmp_path / "run"], tmp_path / "old.html", comparison=None, landscapes=None)
    assert found.path.read_bytes() == (tmp_path / "old.html").read_bytes()


def test_mistakes_are_told_in_a_line(tmp_path):
    walk(tmp_path / "run")
    (tmp_path / "c.json").write_text("[]", encoding="utf-8")
    for words, expected in (
        ([str(tmp_path / "nothing")], "is not a run folder"),
        ([str(tmp_path / "run"), "--comparison", str(tmp_path / "c.json")], "no comparison"),
    ):
        done = slipstream("report", *words, "-o", tmp_path / "p.html", code=2)
        assert expected in complaint(done)
        assert not (tmp_path / "p.html").exists()
