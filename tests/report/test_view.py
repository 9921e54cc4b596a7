import json
import re
import socket
import sys
import urllib.error
import urllib.request

import pytest
import torch

from commands import complaint, slipstream
from report.browser import chromium, opened, serving
from report.recorded import walk
from slipstream.report.gallery import Gallery

# The socket that the server would be given; serving does not end.
from slipstream.report.view import _listening, view_app
from slipstream.trajectory import create_run, reopen_run

NAME = "<b>x<script>alert(1)<"


@pytest.fixture
def folder(tmp_path):
    walk(tmp_path / "group" / "first")
    walk(tmp_path / NAME, seed=1, steps=5)
    return tmp_path


def test_the_list_says_what_is_there(folder):
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{", encoding="utf-8")
    create_run(folder / "empty", model=torch.nn.Linear(2, 2)).close()
    listed = {run.id: run for run in Gallery(folder).listed()}
    assert list(listed) == [NAME, "broken", "empty", "group/first"]
    assert [run.state for run in listed.values()] == ["complete", "damaged", "empty", "complete"]
    assert (listed["group/first"].snapshots, listed["group/first"].step) == (8, 70)
    assert listed["group/first"].metrics == "accuracy 0.875, train loss 0.007812"
    assert "cannot be read" in listed["broken"].problem


def test_the_list_follows_a_run_that_grows(folder):
    gallery = Gallery(folder)
    before = {run.id: run for run in gallery.listed()}["group/first"]
    with reopen_run(folder / "group" / "first") as writer:
        recording = {run.id: run for run in gallery.listed()}["group/first"]
        assert recording.state == "recording"
        weights = {n: torch.zeros(f.shape) for n, f in writer.layout.tensors.items()}
        writer.append(step=200, weights=weights)
    after = {run.id: run for run in gallery.listed()}["group/first"]
    assert len({run.fingerprint for run in (before, recording, after)}) == 3
    assert (after.state, after.step) == ("complete", 200)


def test_a_run_that_vanishes_is_left_out_of_the_list(folder, monkeypatch):
    gallery = Gallery(folder)
    # Vanishes between two reads, which no test could hit from outside.
    opens = Gallery._open

    def vanishing(self, identity):
        found = opens(self, identity)
        for run in (folder / "group" / "first").glob("run.json"):
            run.unlink()
        return found

    # Vanishes between two reads, which no test could hit from outside.
    monkeypatch.setattr(Gallery, "_open", vanishing)
    assert [run.id for run in gallery.listed()] == [NAME]
    assert [run.id for run in gallery.listed()] == [NAME]


@pytest.mark.parametrize("key", ["configuration", "provenance", "versions", "seed", "created"])
@pytest.mark.parametrize("value", [5, "x", [1], {"transfer": 5}, {"setup": 5}, True, None])
def test_a_malformed_description_is_shown_or_refused(folder, key, value):
    path = folder / "group" / "first" / "run.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description.pop("check", None)  # as 0.1 wrote it
    path.write_text(json.dumps({**description, key: value}), encoding="utf-8")
    gallery = Gallery(folder)
    listed = gallery.listed()
    assert [run.id for run in listed] == [NAME, "group/first"]
    for section in ("run", "transfer", "end"):
        if listed[1].state == "damaged":  # the view answers with a page that says so
            with pytest.raises(ValueError, match=r"run.json cannot be read"):
                gallery.section(section, ["group/first"])
        else:
            assert "<section" in gallery.section(section, ["group/first"])


def test_a_section_is_made_once_until_its_run_changes(folder, monkeypatch):
    made = []
    from slipstream.report import gallery as module

    build = module.build_section
    monkeypatch.setattr(module, "build_section", lambda *a: made.append(a[0]) or build(*a))
    gallery = Gallery(folder)
    first = gallery.section("motion", ["group/first"])
    assert gallery.section("motion", ["group/first"]) is first
    assert made == ["motion"]
    with reopen_run(folder / "group" / "first") as writer:
        weights = {n: torch.zeros(f.shape) for n, f in writer.layout.tensors.items()}
        writer.append(step=200, weights=weights)
    assert gallery.section("motion", ["group/first"]) != first


@pytest.mark.parametrize("identity", ["nothing", "..", "../other", "first/../../other", "/"])
def test_only_runs_below_the_folder_are_shown(folder, identity):
    walk(folder / "other")
    gallery = Gallery(folder / "group")
    with pytest.raises(KeyError, match="no run"):
        gallery.section("run", [identity])
    assert "first" in gallery.section("run", ["first"])


def test_no_more_sections_are_kept_than_memory_is_meant_for(folder, monkeypatch):
    # More sections than memory is meant for would take minutes.
    monkeypatch.setattr("slipstream.report.gallery._KEPT", 1)
    gallery = Gallery(folder)
    for identity in (NAME, "group/first"):
        gallery.section("run", [identity])
    assert len(gallery._made) == 1


def test_a_taken_port_and_a_missing_folder_are_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = slipstream("view", tmp_path, "--port", port, code=2)
    assert f"Port {port} is taken" in complaint(done)
    done = slipstream("view", tmp_path / "nothing", code=2)
    assert "is not a folder" in complaint(done)


def test_a_missing_package_is_told_with_its_install_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'slipstream\[view\]'"):
        view_app(Gallery(tmp_path))


def test_it_listens_on_this_machine_only():
    with _listening(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_the_server_answers_this_machine_and_nobody_else(folder):
    with serving(folder) as address:
        status, headers, body = get(address)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers
        assert get(address, Host="elsewhere.example")[0] == 400
        status, headers, body = get(address + "runs")
        assert [run["id"] for run in json.loads(body)] == [NAME, "group/first"]
        assert get(address + "runs", **{"If-None-Match": headers["ETag"]})[0] == 304
        assert get(address + "section/run?run=group/first")[0] == 200
        assert get(address + "section/motion?run=group/first")[0] == 200
        for wrong in ("section/run?run=../x", "section/other?run=group/first", "section/run",
                      "assets/NOTICE", "elsewhere"):  # fmt: skip
            assert get(address + wrong)[0] == 404


def get(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, ""


def test_the_view_in_a_browser(folder):
    """Choose, compare, filter, sort, switch off; and follow a run that is being recorded."""
    phone = {"width": 390, "height": 844}
    with chromium() as browser, serving(folder) as address, opened(browser, address) as page:
        page.get_by_role("link", name="group/first").click()
        page.locator("#run figure.lines .main-svg").first.wait_for()
        page.locator("#modes figure.panels").wait_for()
        assert page.locator("h1").inner_text() == "group/first"

        row = page.locator("#runs tbody tr", has_text=NAME)
        row.get_by_role("checkbox").check()
        page.locator("summary", has_text="Settings, side by side").wait_for()
        assert page.locator("h1").inner_text() == f"group/first and {NAME}"
        assert page.locator("b").count() == 0
        page.locator("#legend input").first.uncheck()
        page.locator("#end .note").wait_for()
        assert page.locator("main [data-run='0']:visible").count() == 0

        page.locator("#filter").fill("group")
        assert page.locator("#runs tbody tr:visible").count() == 1
        page.locator("#filter").fill("")
        page.get_by_role("button", name="step").click()
        assert page.locator("#runs tbody tr").first.inner_text().strip().startswith(NAME)

        page.get_by_role("link", name="group/first").click()
        page.locator("summary", has_text=re.compile(r"^Settings$")).click()
        with reopen_run(folder / "group" / "first") as writer:
            weights = {n: torch.zeros(f.shape) for n, f in writer.layout.tensors.items()}
            writer.append(step=12345, weights=weights)
            page.locator("#runs .state-recording").wait_for()
            page.get_by_role("cell", name="9, step 0 to 12345").wait_for()
        page.locator("#run td", has_text="complete").wait_for()

        page.set_viewport_size(phone)
        page.wait_for_function("() => document.documentElement.scrollWidth <= 390")
