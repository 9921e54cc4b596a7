import re

import pytest

from report.browser import chromium, opened
from report.recorded import walk
from slipstream.report.report import write_report
from slipstream.report.sections import Landscapes

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
    write_report(runs, folder / "report.html", landscapes=Landscapes(seconds=0))
    return (folder / "report.html").as_uri()


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
        page.locator("#run [data-action=copy]").first.click()
        page.get_by_text("Copied").wait_for()
        lines = page.evaluate("navigator.clipboard.readText()").split("\n")
        assert lines[0].split("\t") == ["what", "plain", NAME]
        assert len({line.count("\t") for line in lines}) == 1


@pytest.mark.parametrize(
    ("figure", "header", "first"),
    [
        ("#run figure.lines", "series,step,loss,low,high", "plain train,0,1,,"),
        ("#motion figure.heatmap", "layer,step,|change| / |weights| in a step", "0,10,"),
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
        page.get_by_label("plain").uncheck()
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
