"""A headless Chromium for tests, if there is one, and a server to look at."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def chromium():
    """A browser, or the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the browser extra")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, address, **options):
    """A page whose errors and requests to elsewhere fail the test."""
    context = browser.new_context(**options)
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    here = address.split("/")[2]
    page.on("request", lambda r: None if elsewhere(r.url, here) is None else wrong.append(r.url))
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    assert not wrong


def elsewhere(url, here):
    """The address, if it is not on this machine."""
    kind, _, rest = url.partition(":")
    local = kind in ("file", "blob", "data") or rest.strip("/").split("/")[0] == here
    return None if local else url


@contextmanager
def serving(folder, *words):
    """The address of `slipstream view` over a folder, ended with Ctrl-C."""
    code = "from slipstream.cli import main; main()"
    command = [sys.executable, "-c", code, "view", str(folder), "--port", "0", "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        try:
            lines = [server.stdout.readline() for _ in range(3)]
            yield json.loads(b"".join(lines))["address"]
        finally:
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=30)
    assert (server.returncode, errors.strip()) == (0, b"Ended.")
