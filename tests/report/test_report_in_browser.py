import re
from itertools import combinations

import pytest
import torch

from report.browser import chromium, opened
from report.recorded import walk
from slipstream.report.colour_scale import colour_scale
from slipstream.report.content import Contours, HeatMap, Lines, Mark, Section, Series
from slipstream.report.page import page_of
from slipstream.report.report import write_report
from slipstream.report.sections import Extras, Landscapes

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
NAME = "<b>x<script>alert(1)<"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of two runs, one with HTML in its name."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [walk(folder / name, seed=seed) for seed, name in enumerate(("plain", NAME))]
    write_report(runs, folder / "report.html", extras=Extras(landscapes=Landscapes(seconds=0)))
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A page with a chart of every kind."""
    steps = list(range(0, 80, 10))
    falling = [10.0 ** -(n / 2 + 0.5) for n in range(8)]
    line = Series("loss", steps, falling, "#0072B2")
    values = [[10.0**-n, 2.0, None] for n in range(4)]
    columns, rows = [0, 10, 20], ["a", "b", "c", "d"]
    scale = colour_scale("speed", torch.tensor([1e-3, 2.0]), scale="log")
    root = colour_scale("loss", torch.tensor([[0.1, 0.2], [5.0, 90.0]]), scale="root")
    charts = [
        Lines("loss", "Loss", "Read.", "step", "loss", [line], log=True, borders=[30]),
        Lines("time", "Time", "Read.", "step", "loss", [line], marks=[Mark("30 steps", 30, 0.1)]),
        Lines("turns", "Turns", "Read.", "step", "cosine", [line], y_range=(-1, 1)),
        HeatMap("motion", "Speed", "Read.", "step", "layer", scale, columns, rows, values),
        Contours(
            "plane", "Plane", "Read.", "x", "y", root, [0, 1], [0, 1, 2],
            [[0.1, 0.2], [5.0, None], [90.0, 1.0]], [(0, 0), (1, 2)], marks=[Mark("end", 1, 2)],
        ),
        HeatMap(
            "matrix", "Barriers", "Read.", "", "", scale, ["a", "b"], ["a", "b"],
            [[0.0, 1.0], [0.5, 0.0]], written=True, square=True,
        ),
    ]  # fmt: skip
    page = tmp_path_factory.mktemp("kinds") / "page.html"
    text = page_of("Every kind", [], [Section("run", "What was learned?", charts)])
    page.write_text(text, encoding="utf-8")
    return page.as_uri()


def test_charts_are_drawn_and_tell_their_numbers(browser, address):
    with opened(browser, address) as page:
        figure = page.locator("#run figure.lines").first
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        assert figure.locator("g.trace path.js-line").count() == 2
        names = figure.locator(".annotation-text").all_text_contents()
        assert {name[:5] for name in names} == {"plain", "<b>x<"}
        place = figure.locator(".nsewdrag")
        place.hover()
        figure.locator(".hoverlayer text").first.wait_for(state="attached")
        shown = " ".join(figure.locator(".hoverlayer text").all_text_contents())
        assert "plain train" in shown
        assert "<b>x<script>alert(1)< train" in shown


def test_a_chart_can_be_zoomed_and_reset(browser, address):
    with opened(browser, address) as page:
        plot = page.locator("#run figure.lines .plot").first
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg").first.wait_for()

        def range_of():
            return plot.evaluate("plot => plot.layout.xaxis.range.map(Number)")

        before = range_of()
        box = plot.locator(".nsewdrag").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.3, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=5)
        page.mouse.up()
        page.wait_for_function(
            "([p, n]) => p.layout.xaxis.range[1] < n", arg=[plot.element_handle(), before[1]]
        )
        low, high = range_of()
        assert low > before[0]
        assert high < before[1]
        plot.locator("[data-title='Reset axes']").click()
        page.wait_for_function(
            "([p, n]) => p.layout.xaxis.range[1] >= n", arg=[plot.element_handle(), before[1]]
        )


def test_a_table_is_sorted_by_number_and_back(browser, address):
    with opened(browser, address) as page:
        table = page.locator("#motion table").first
        values = table.locator("tbody td:nth-child(4)")

        def speeds():
            return values.evaluate_all("cells => cells.map(cell => Number(cell.dataset.value))")

        head = table.locator("thead th:nth-child(4)")
        head.locator("button").click()
        assert speeds() == sorted(speeds())
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").click()
        assert speeds() == sorted(speeds(), reverse=True)


def test_a_table_is_copied_as_columns(browser, address):
    permissions = ["clipboard-read", "clipboard-write"]
    with opened(browser, address, permissions=permissions) as page:
        assert not page.locator("#run details table").is_visible()
        page.locator("#run summary").click()
        page.locator("#run details [data-action=copy]").click()
        page.get_by_text("Copied").wait_for()
        lines = page.evaluate("navigator.clipboard.readText()").split("\n")
        assert lines[0].split("\t") == ["setting", "plain", NAME]
        assert len({line.count("\t") for line in lines}) == 1


@pytest.mark.parametrize(
    ("figure", "header", "first"),
    [
        ("#run figure.lines", "series,step,loss,low,high", "plain train,0,1,,"),
        ("#motion figure.heatmap", "layer,step,|change| / |weights| per step", "0,10,"),
        ("#motion figure.lines", 'series,step,"first component', "step 70,0,-"),
        ("#modes figure.panels", "series,step,deviations from the mean,low,high", "mode 0: "),
    ],
)
def test_the_data_of_a_figure_are_saved_as_csv(browser, address, figure, header, first):
    with opened(browser, address) as page:
        with page.expect_download() as saved:
            page.locator(figure).first.locator("[data-action=csv]").click()
        lines = saved.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(header)
    assert lines[1].startswith(first)
    assert saved.value.suggested_filename.endswith(".csv")


def test_a_run_can_be_switched_off(browser, address):
    with opened(browser, address) as page:
        figure = page.locator("#run figure.lines").first
        figure.scroll_into_view_if_needed()
        figure.locator(".main-svg").first.wait_for()
        page.get_by_role("checkbox", name="plain").uncheck()
        page.wait_for_function(
            "figure => figure.querySelectorAll('g.trace path.js-line').length === 1",
            arg=figure.element_handle(),
        )
        assert page.locator("[data-run='0']").evaluate_all("all => all.every(one => one.hidden)")
        assert page.locator("[data-run='1']").first.is_visible()


def test_names_are_text_and_nothing_of_them_runs(browser, address):
    with opened(browser, address) as page:
        assert page.locator("h1").inner_text() == f"plain and {NAME}"
        assert page.locator("b").count() == 0
        assert page.locator("svg text", has_text=NAME[:5]).count() > 0


def test_the_theme_follows_the_system_or_the_reader(browser, address):
    with opened(browser, address, color_scheme="dark") as page:

        def colours():
            return page.evaluate(
                "() => [document.body, document.querySelector('.xtick text')]"
                ".map(one => getComputedStyle(one)).map((s, n) => n ? s.fill : s.backgroundColor)"
            )

        page.wait_for_selector(".xtick text")
        dark = colours()
        page.locator("#theme").click()
        assert page.locator("#theme").inner_text() == "Theme: light"
        light = colours()
        assert all(
            sum(map(int, re.findall(r"\d+", a)[:3])) != sum(map(int, re.findall(r"\d+", b)[:3]))
            for a, b in zip(dark, light, strict=True)
        )
        assert light[0] == "rgb(255, 255, 255)"


RANGES = """() => [...document.querySelectorAll("figure.chart:not(.square) .plot")].map((plot) => [
  plot.closest("figure").querySelector("h3").textContent,
  ...["xaxis", "yaxis"].flatMap((axis) => plot._fullLayout[axis].range.map(Number)),
  ...plot._fullData.filter((one) => one.type !== "scatter").flatMap((one) => [one.zmin, one.zmax]),
])"""


def test_theme_and_width_change_no_range(browser, every_kind):
    with opened(browser, every_kind) as page:
        page.wait_for_function("() => !document.querySelector('figure.chart:not([data-drawn])')")
        before = page.evaluate(RANGES)
        assert len(before) == 6
        assert before[0][3:5] == pytest.approx([-4.2, -0.3], abs=0.2)  # decades
        for _ in range(3):
            page.locator("#theme").click()
            assert page.evaluate(RANGES) == before
        page.set_viewport_size({"width": 700, "height": 900})
        page.wait_for_function(
            "() => document.querySelector('.main-svg').width.baseVal.value < 700"
        )
        page.wait_for_timeout(300)
        for old, new in zip(before, page.evaluate(RANGES), strict=True):
            assert new[0] == old[0]
            assert new[1:] == pytest.approx(old[1:], rel=0.1)  # room for marks


@pytest.mark.parametrize("width", [1280, 400])
def test_colour_bars_lie_beside_the_data_with_apart_ticks(browser, every_kind, width):
    with opened(browser, every_kind, viewport={"width": width, "height": 900}) as page:
        page.wait_for_function("() => !document.querySelector('figure.chart:not([data-drawn])')")
        page.locator("#theme").click()
        boxes = page.evaluate(
            """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
              const of = (one) => (({ left, right, top, bottom }) => [left, right, top, bottom])(
                one.getBoundingClientRect());
              const bar = plot.querySelector(".cbfills, .cbfill");
              const ticks = [...plot.querySelectorAll(".cbaxis text")].map(of);
              return bar ? [[of(bar), of(plot.querySelector(".nsewdrag")), ticks]] : [];
            })"""
        )
        assert len(boxes) == 2  # values that are written need none
        for bar, data, ticks in boxes:
            assert not overlap(bar, data)
            assert len(ticks) > 1
            assert not any(overlap(a, b) for a, b in combinations(ticks, 2))


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def test_no_sentence_depends_on_the_theme(browser, address):
    with opened(browser, address) as page:
        readings = page.locator("figcaption p").all_text_contents()
        assert any("brighter" in text for text in readings)
        assert not any("darker" in text or "black" in text for text in readings)
        colours = "() => document.querySelector('#modes .heatmap .plot')._fullData[0].colorscale"
        page.locator("#modes .heatmap").first.scroll_into_view_if_needed()
        page.wait_for_selector("#modes .heatmap[data-drawn]")
        light = page.evaluate(colours)
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert page.evaluate(colours) == light


def test_the_page_begins_with_what_was_learned(browser, address):
    with opened(browser, address) as page:
        kinds = page.locator("#run .items > *").evaluate_all(
            "all => all.map(one => one.matches('.lead') ? 'sentence' : one.tagName)"
        )
        assert kinds == ["sentence", "sentence", "FIGURE", "FIGURE", "FIGURE", "DETAILS"]


def test_a_phone_shows_all_without_scrolling_sideways(browser, address):
    with opened(browser, address, **PHONE) as page:
        page.wait_for_selector(".main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.set_viewport_size({"width": 844, "height": 390})
        page.wait_for_function(
            "() => document.querySelector('.main-svg').width.baseVal.value > 390"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 844


def test_printed_all_charts_are_there_in_light_colours(browser, address):
    with opened(browser, address, color_scheme="dark") as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        undrawn = "figure.chart:not([data-drawn])"
        assert page.locator(undrawn).count() == 0
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        widths = page.locator(".plot").evaluate_all("all => all.map(p => p.layout.width)")
        assert max(widths) <= 688  # of A4 between its margins
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
