"""The page in a real browser, from a file and without a network."""

import json
import re
from pathlib import Path

import pytest

from launch.report import main
from tests.report.browser import DRAW_ALL, resize, set_dark, start_browser

pytestmark = pytest.mark.browser

MARKS = "path, circle, rect, image, text"


@pytest.fixture(scope="module")
def page(runs, comparison, tmp_path_factory):
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["--output", str(output), "--runs", *map(str, runs), "--compare", str(comparison)]) == 0
    return output


@pytest.fixture(scope="module")
def browser():
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(page.as_uri())
    assert browser.execute_async_script(DRAW_ALL) is None
    return browser


def test_every_figure_is_drawn_without_an_error(opened):
    assert [entry for entry in opened.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    script = f"return [...document.querySelectorAll('.plot')].map((one) => [one.id, \
        one.querySelectorAll('.trace, .hm, .barlayer .point').length, one.querySelectorAll('{MARKS}').length])"
    counts = opened.execute_script(script)
    assert len(counts) > 40
    assert [name for name, traces, marks in counts if traces == 0 or marks < 5] == []
    hosts = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert opened.execute_script(hosts) == []


def hover(browser, figure, curve, point):
    """Shows a point's label as the pointer does, and returns its texts."""
    script = """
        const div = document.getElementById(arguments[0]);
        Plotly.Fx.unhover(div);
        Plotly.Fx.hover(div, [{curveNumber: arguments[1], pointNumber: arguments[2]}]);
        const texts = () => [...div.querySelectorAll('.hoverlayer text')].map((one) => one.textContent);
        setTimeout(() => arguments[3](texts()), 300);  // labels of before may still be there
    """
    return " ".join(browser.execute_async_script(script, figure, curve, point))


def test_hovering_shows_the_numbers_of_the_run(opened, runs):
    lines = [json.loads(line) for line in (runs[2] / "metrics.jsonl").read_text().splitlines()]
    for metric in ("hr@5", "ndcg@5"):
        figure = f"spans-{metric.replace('@', '_')}-drawn-comirec_dr"
        script = "return document.getElementById(arguments[0]).data.map((one) => [one.meta, one.mode])"
        traces = opened.execute_script(script, figure)
        curve = traces.index(["ft", "lines+markers"])
        for place, line in enumerate(lines):
            found = re.search(r"span (\d): ([\d.]+)", hover(opened, figure, curve, place))
            assert int(found[1]) == line["test_span"]
            assert float(found[2]) == pytest.approx(line[metric], abs=6e-5)  # four digits are shown


def test_the_pointer_itself_brings_a_label(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    bar = opened.find_element(By.CSS_SELECTOR, "#data-interactions-drawn .barlayer .point path")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    ActionChains(opened).move_to_element(bar).perform()
    opened.execute_async_script("setTimeout(arguments[0], 400)")
    texts = opened.find_elements(By.CSS_SELECTOR, "#data-interactions-drawn .hoverlayer text")
    assert "interactions" in " ".join(text.text for text in texts)


def visible_traces(browser, label):
    script = """
        return [...document.querySelectorAll('.plot')].flatMap((div) => div.data
            .filter((trace) => trace.meta === arguments[0] && trace.visible !== 'legendonly').map(() => div.id));
    """
    return browser.execute_script(script, label)


def test_a_strategy_is_switched_off_in_all_figures_at_once(opened):
    from selenium.webdriver.common.by import By

    before = set(visible_traces(opened, "fine_tuning"))
    others = visible_traces(opened, "no_detector")
    assert {
        "spans-hr_5-drawn-comirec_dr",
        "groups-items-drawn-comirec_dr",
        "comparison-cost-drawn-comirec_dr",
    } <= before
    box = opened.find_element(By.CSS_SELECTOR, "#labels input[value='fine_tuning']")
    box.click()
    assert visible_traces(opened, "fine_tuning") == []
    assert visible_traces(opened, "no_detector") == others
    rows = opened.find_elements(By.CSS_SELECTOR, "tr[data-label='fine_tuning']")
    assert rows
    assert not any(row.is_displayed() for row in rows)
    box.click()
    assert set(visible_traces(opened, "fine_tuning")) == before


def test_a_phone_shows_the_whole_width(opened):
    resize(opened, 400)
    opened.refresh()
    assert opened.execute_async_script(DRAW_ALL) is None
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 400
    widths = opened.execute_script(
        "return [...document.querySelectorAll('.plot .main-svg')].map((one) => one.clientWidth)"
    )
    assert widths
    assert 250 < min(widths) <= max(widths) <= 400


def test_dark_pages_have_light_text(opened):
    def colours():
        script = "return ['spans-hr_5-drawn-comirec_dr'].map((id) => document.getElementById(id).layout.font.color)"
        ground = "return getComputedStyle(document.body).backgroundColor"
        return opened.execute_script(script)[0], opened.execute_script(ground)

    light = colours()
    set_dark(opened)
    try:
        opened.execute_async_script("setTimeout(arguments[0], 500)")
        dark = colours()
    finally:
        set_dark(opened, False)
    assert dark[0] != light[0]
    assert dark[1] != light[1]


def test_only_the_page_is_needed(page, tmp_path, browser):
    alone = tmp_path / "sent to a colleague.html"
    alone.write_bytes(Path(page).read_bytes())
    browser.get(alone.as_uri())
    assert browser.execute_async_script(DRAW_ALL) is None
