"""The page in a real browser: what it shows, how it answers, and that it asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zipfmax_reports import interactive, tables
from zipfmax_reports.page import Page
from zipfmax_reports.report import write_report
from zipfmax_reports.runs import read_run
from zipfmax_reports.static import draw
from zipfmax_reports.style import DARK, LIGHT, factor, percent, seconds

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium on the path", allow_module_level=True)

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
WIDE, NARROW = 1280, 380
BATCH = 1024
WAIT_S = 60.0
FIRST_MARK = "document.querySelector('#figure-heat .interactive [tabindex]').getAttribute('aria-label')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript condition. Playwright's own waiting evaluates text within the page, which forbids it."""
    end = time.monotonic() + WAIT_S
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {WAIT_S} s: {condition}"
        page.wait_for_timeout(20)


class Reader:
    """Opens pages and notes every request, message and error; `close` fails on any of them."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.noise: list[str] = []

    def open(
        self, path: Path, scheme: str = "light", width: int = WIDE, scripts: bool = True, query: str = ""
    ) -> Any:
        context = self._browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        self._contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        page.on("request", lambda request: self._note_request(request.url, path))
        page.goto(path.as_uri() + query)
        if scripts:
            until(page, "document.documentElement.dataset.charts === 'ready'")
        return page

    def _note_request(self, url: str, path: Path) -> None:
        if url.split("#")[0].split("?")[0] != path.as_uri() and not url.startswith("data:"):
            self.noise.append(f"request: {url}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    opened = Reader(browser)
    yield opened
    opened.close()
    assert opened.noise == []


@pytest.fixture(scope="module")
def page_path(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an untouched run; tests that change a run write their own."""
    return write_report([write_run(tmp_path_factory.mktemp("page") / "run")])


class Shared:
    """Pages of the untouched run that tests share, one a scheme and width: opening one takes seconds.

    Before a test each is as it was opened: at its top, with no panel and no table open.
    """

    def __init__(self, browser: Any, path: Path) -> None:
        self.reader = Reader(browser)
        self._path = path
        self._pages: dict[tuple[str, int], Any] = {}

    def __call__(self, scheme: str = "light", width: int = WIDE) -> Any:
        if (scheme, width) not in self._pages:
            self._pages[scheme, width] = self.reader.open(self._path, scheme, width)
            self._pages[scheme, width].emulate_media(reduced_motion="reduce")  # no scrolling takes time
        page = self._pages[scheme, width]
        if page.locator("#detail").is_visible():
            page.locator("#detail").get_by_role("button", name="Close").click()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = false; })")
        page.evaluate("document.activeElement.blur()")
        page.mouse.move(0, 0)
        page.evaluate("scrollTo(0, 0)")
        return page


@pytest.fixture(scope="module")
def shared_pages(browser: Any, page_path: Path) -> Iterator[Shared]:
    shared = Shared(browser, page_path)
    yield shared
    shared.reader.close()


@pytest.fixture
def shown(shared_pages: Shared) -> Iterator[Shared]:
    """A shared page, for a test that reads and clicks; one that chooses or resizes opens its own."""
    yield shared_pages
    noise, shared_pages.reader.noise = shared_pages.reader.noise, []
    assert noise == []


@pytest.fixture(scope="module")
def chosen(browser: Any, page_path: Path) -> Iterator[Any]:
    """A page on which a forward pass and torch.nn were chosen."""
    opened = Reader(browser)
    page = opened.open(page_path)
    choose(page, "task", "a forward pass")
    choose(page, "baseline", "torch.nn's adaptive softmax")
    until(page, f"({FIRST_MARK}).includes('torch')")
    yield page
    opened.close()
    assert opened.noise == []


def choose(page: Any, control: str, label: str) -> None:
    page.select_option(f"#controls select[name={control}]", label=label)


def texts(page: Any, chart: str) -> list[str]:
    """What a screen reader says of each mark."""
    found: list[str] = page.eval_on_selector_all(
        f"figure[data-chart={chart}] .interactive [tabindex]",
        "all => all.map(m => m.getAttribute('aria-label'))",
    )
    return found


def marks(page: Any, chart: str) -> dict[str, str]:
    """The texts of a chart's marks, each by the cell that it names."""
    return {text.split(": ")[0]: text for text in texts(page, chart)}


def background(page: Any) -> tuple[int, ...]:
    text = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_the_page_renders_quietly_in_the_readers_scheme(
    shown: Shared, page_path: Path, theme: Any, width: int
) -> None:
    page = shown(theme.name, width)
    assert background(page) == rgb(theme.surface)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for chart in ("vocabulary", "skew", "heat", "strip"):
        box = page.locator(f"figure[data-chart={chart}] .interactive svg").bounding_box()
        assert box["width"] > 250
        assert box["x"] + box["width"] <= width + 1
    assert page_path.stat().st_size < 5_000_000


def test_the_first_screen_shows_the_run_s_own_numbers(shown: Shared, page_path: Path) -> None:
    page = shown()
    table = tables.cells(read_run(page_path.parent))
    rows = tables.under(tables.ratios(table, "full"), tables.main_condition(table))
    rows = rows[(rows["impl"] == "zipfmax") & (rows["task"] == "train")]
    answers = page.locator(".answer")
    assert answers.nth(0).locator(".big").inner_text() == "✓ Yes"
    assert answers.nth(1).locator(".big").inner_text() == f"✓ {factor(rows['speedup'].median())}"
    assert factor(rows["speedup"].min()) in answers.nth(1).text_content()
    for index in range(answers.count()):
        target = answers.nth(index).locator("a").get_attribute("href")
        assert page.locator(target).count() == 1


def test_three_verdicts_stand_beside_the_speedups_on_the_first_screen(shown: Shared) -> None:
    page = shown()
    verdicts = page.locator(".verdicts .answer")
    assert verdicts.count() == 3
    figure = page.locator(".first figure .interactive svg").bounding_box()
    for index in range(3):
        box = verdicts.nth(index).bounding_box()
        assert box["y"] + box["height"] <= 900
        assert box["x"] + box["width"] <= figure["x"]
    assert figure["y"] + figure["height"] <= 900
    narrow = shown(width=NARROW)
    last = narrow.locator(".verdicts .answer").nth(2).bounding_box()
    assert narrow.locator(".first figure").bounding_box()["y"] >= last["y"] + last["height"]


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_contents_stay_in_view_and_say_where_one_is(shown: Shared, width: int) -> None:
    page = shown(width=width)
    page.evaluate("document.getElementById('parity').scrollIntoView()")
    until(page, "document.querySelector('nav [aria-current]').hash === '#parity'")
    box = page.locator("nav").bounding_box()
    assert 0 <= box["y"] < 5
    heading = page.locator("#parity h2").bounding_box()
    assert box["y"] + box["height"] <= heading["y"] + 1  # nothing is hidden under them


def test_a_heading_sorts_a_table_by_what_its_numbers_are_worth(shown: Shared) -> None:
    page = shown()
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    table = page.locator("#repeat details table.data")
    column = table.locator("thead th").all_inner_texts()
    place = next(i for i, text in enumerate(column) if text.startswith("median"))
    button = table.locator("thead th").nth(place).locator("button")

    def column_shown() -> list[float]:
        units = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
        texts = page.eval_on_selector_all(
            "#repeat details table.data tbody tr",
            f"rows => rows.map((row) => row.cells[{place}].textContent)",
        )
        return [float(n) * units[unit] for n, unit in (text.split() for text in texts if text != "–")]

    before = column_shown()
    button.click()
    assert column_shown() == sorted(before) != before
    assert table.locator("thead th").nth(place).get_attribute("aria-sort") == "ascending"
    button.click()
    assert column_shown() == sorted(before, reverse=True)


def test_the_choice_stands_in_the_address_and_a_link_shows_it(
    reader: Reader, chosen: Any, page_path: Path
) -> None:
    assert chosen.evaluate("location.search") == "?task=forward&baseline=torch"
    other = reader.open(page_path, query="?task=forward&baseline=torch&unknown=1&dtype=nothing")
    assert marks(other, "heat") == marks(chosen, "heat")
    assert other.locator("#controls select[name=task] option:checked").text_content() == "a forward pass"
    choose(other, "task", "a training step")
    choose(other, "baseline", "full softmax")
    until(other, "location.search === ''")


def test_what_is_wider_than_a_phone_shows_that_there_is_more(shown: Shared) -> None:
    page = shown(width=NARROW)
    for place in (".scroll", "nav ul"):
        drawn = page.evaluate(f"getComputedStyle(document.querySelector('{place}')).backgroundAttachment")
        assert drawn == "local, local, scroll, scroll"


def test_every_mark_says_the_ratio_of_its_record(shown: Shared, page_path: Path) -> None:
    page = shown()
    table = tables.cells(read_run(page_path.parent))
    rows = tables.under(tables.ratios(table, "full"), tables.main_condition(table))
    rows = rows[(rows["impl"] == "zipfmax") & (rows["task"] == "train")]
    expected = {
        f"{row.n_classes:,} classes, {row.labels_name}": factor(row.speedup) for row in rows.itertuples()
    }
    for chart in ("vocabulary", "skew", "heat"):
        said = marks(page, chart)
        assert said.keys() == expected.keys()
        for name, text in said.items():
            assert text.startswith(f"{name}: {expected[name]} over full softmax. median ")


def test_the_strip_says_every_error_in_units_of_its_budget(shown: Shared, page_path: Path) -> None:
    page = shown()
    rows = tables.with_used_budget(read_run(page_path.parent).parity)
    worst = rows.nlargest(1, "used").iloc[0]
    said = texts(page, "strip")
    name = f"{worst['impl']} against {worst['against']}, {worst['dtype']}, {worst['tensor']}"
    assert any(text.startswith(f"{name}: {percent(worst['used'])} of the budget. ") for text in said)
    assert sum(int(re.search(r"(\d+) comparison", text)[1]) for text in said) == len(rows)


def test_the_controls_change_what_every_figure_shows(chosen: Any, page_path: Path) -> None:
    table = tables.cells(read_run(page_path.parent))
    rows = tables.under(tables.ratios(table, "torch"), tables.main_condition(table))
    rows = rows[(rows["impl"] == "zipfmax") & (rows["task"] == "forward")]
    marked = marks(chosen, "heat")
    for row in rows.itertuples():
        assert (
            f": {factor(row.speedup)} over torch.nn"
            in marked[f"{row.n_classes:,} classes, {row.labels_name}"]
        )
    assert "torch.nn" in chosen.locator("#figure-heat h3").inner_text()
    assert "forward" in chosen.locator("#figure-heat figcaption").inner_text()
    assert chosen.locator("#controls-status").inner_text().startswith("15 cells shown.")


def test_a_choice_that_was_never_measured_says_why(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path)
    choose(page, "subject", "paddle")
    choose(page, "dtype", "bfloat16")
    until(page, "document.querySelector('#controls-status').textContent.startsWith('No cell')")
    status = page.locator("#controls-status").inner_text()
    assert "15 without a time (skipped: paddle has no bfloat16 product on a CPU)" in status
    assert marks(page, "heat") == {}
    choose(page, "dtype", "float32")
    until(page, "document.querySelector('#controls-status').textContent.startsWith('15 cells')")
    assert page.locator("#figure-heat .interactive").is_visible()
    assert len(marks(page, "heat")) == 15


def test_arrow_keys_walk_the_marks_and_enter_opens_a_cell(shown: Shared) -> None:
    page = shown()
    assert page.locator("#figure-heat .interactive [tabindex='0']").count() == 1
    page.focus("#figure-heat .interactive [tabindex='0']")
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.locator("strong").inner_text() == focused.split(". ")[0]
    for word in ("median", "15 samples", "95 % interval", "head, then tails", "peak temporary memory"):
        assert word in tip.inner_text()
    page.keyboard.press("Enter")
    panel = page.locator("#detail")
    panel.locator(".strip svg").wait_for()
    assert not tip.is_visible()
    assert panel.locator("h3").inner_text() == focused.split(". ")[0]
    assert panel.locator("tbody tr").first.locator("th").inner_text() == "zipfmax"
    assert "zipfmax sweep --classes" in panel.locator("pre").inner_text()
    panel.get_by_role("button", name="Close").click()
    assert not panel.is_visible()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == focused


def test_a_cell_shows_its_time_split_by_head_and_tails(shown: Shared, page_path: Path) -> None:
    page = shown()
    table = tables.cells(read_run(page_path.parent))
    mark = page.locator("#figure-heat .interactive [tabindex]").nth(4)
    cell = mark.get_attribute("aria-label").split(": ")[0]
    mark.click()
    panel = page.locator("#detail")
    panel.locator(".split svg").wait_for()
    names = table["n_classes"].map("{:,} classes, ".format) + table["labels_name"]
    own = table[(names == cell) & (table["impl"] == "zipfmax") & (table["task"] == "train")]
    row = tables.under(own, tables.main_condition(table)).iloc[0]
    lines = panel.get_by_role("region", name="Where the time of zipfmax goes").locator("tbody tr")
    found = {line.locator("th").inner_text(): line.locator("td").all_inner_texts() for line in lines.all()}
    expected = dict(zip(("head", "tail 1", "tail 2"), row["parts_s"], strict=True))
    expected["other"] = row["parts_whole_s"] - sum(row["parts_s"])
    assert {part: cells[1] for part, cells in found.items()} == {
        part: seconds(time) for part, time in expected.items()
    }
    assert found["head"][0] == str(BATCH)
    assert found["head"][2] == "50 %"
    assert len(panel.locator(".split svg .mark-rect path").all()) == 4
    assert f"The whole step took {seconds(row['parts_whole_s'])}" in panel.inner_text()
    limits = row["limit_parts_s"]
    assert found["tail 1"][3:] == [seconds(limits[1]), percent(limits[1] / row["parts_s"][1])]


@pytest.mark.slow
def test_ten_thousand_cells_fit_and_answer(
    reader: Reader, write_large_run: Callable[[Path], int], tmp_path: Path
) -> None:
    assert write_large_run(tmp_path / "run") > 10_000
    path = write_report([tmp_path / "run"])
    assert path.stat().st_size < 5_000_000
    page = reader.open(path)
    assert len(texts(page, "heat")) == 36 * 35
    assert len(texts(page, "vocabulary")) == 36 * 7
    assert len(texts(page, "skew")) == 7 * 35
    assert "labels (7 of 35)" in page.locator("#figure-vocabulary-full .interactive").inner_text()
    choose(page, "task", "a forward pass")
    until(page, "document.querySelector('#figure-heat figcaption').textContent.includes('forward')")
    page.focus("#figure-heat .interactive [tabindex='0']")
    page.keyboard.press("Enter")
    panel = page.locator("#detail")
    panel.locator(".strip svg").wait_for()
    assert "11 of 30 of zipfmax" in panel.inner_text()
    assert panel.locator(".strip svg .mark-tick path, .strip svg .mark-rect path").count() == 4 * 11
    assert "Drawn: 4 of 36 vocabularies" in page.locator("#figure-time figcaption").inner_text()
    caption = page.locator("#figure-time caption").text_content()
    assert "The first 300 of 10,080 rows; the run directory holds all." in caption


def test_a_run_on_a_gpu_says_what_it_could_not_time_and_how_it_timed(
    reader: Reader, write_gpu_run: Callable[[Path], Path], tmp_path: Path
) -> None:
    page = reader.open(write_report([write_gpu_run(tmp_path / "run")]))
    assert "NVIDIA H100" in page.locator(".machine").first.inner_text()
    assert "bfloat16, cuda" in page.locator(".condition").inner_text()
    over_full = page.locator(".answer").nth(1).text_content()
    assert "In 4 cells more full softmax has no time: out of memory." in over_full
    missing = page.locator("#missing").inner_text()
    assert "12 of 64 cells: 4 over budget, 4 failed, 4 out of memory." in missing
    assert "Tried to allocate 76.29 GiB" in missing
    assert len(texts(page, "heat")) == 3 * 4
    assert all("samples, each the replay of a CUDA graph" in text for text in texts(page, "heat"))
    choose(page, "baseline", "the best full softmax")
    until(page, f"({FIRST_MARK}).includes('the best full softmax')")
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDE


def test_a_click_opens_the_cell_under_the_pointer(shown: Shared) -> None:
    page = shown()
    mark = page.locator("#figure-heat .interactive [tabindex]").nth(4)
    name = mark.get_attribute("aria-label").split(". ")[0]
    mark.click()
    assert page.locator("#detail h3").inner_text() == name


def test_the_switch_overrides_the_preference_and_gives_it_back(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path, "light")
    page.get_by_role("button", name="Dark").click()
    until(page, "document.documentElement.dataset.charts === 'ready'")
    assert background(page) == rgb(DARK.surface)
    assert page.locator("#figure-vocabulary-full .interactive").inner_html().count(DARK.series[0]) > 0
    page.get_by_role("button", name="Auto").click()
    until(page, "document.documentElement.dataset.charts === 'ready'")
    assert background(page) == rgb(LIGHT.surface)
    assert page.get_by_role("button", name="Auto").get_attribute("aria-pressed") == "true"


def test_without_scripts_every_figure_is_drawn_described_and_tabulated(
    reader: Reader, page_path: Path
) -> None:
    page = reader.open(page_path, scripts=False)
    figures = page.locator("figure.figure")
    assert figures.count() >= 8
    for index in range(figures.count()):
        figure = figures.nth(index)
        svg = figure.locator(".static svg")
        assert svg.is_visible()
        name, description = svg.get_attribute("aria-labelledby").split()
        assert page.locator(f"#{name}").text_content()
        assert page.locator(f"#{description}").text_content()
        assert figure.locator("table tbody tr").count() > 0
        assert "zipfmax " in figure.locator("pre").first.text_content()
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#scheme").is_visible()


def test_print_shows_the_static_figures(reader: Reader, page_path: Path) -> None:
    page = reader.open(page_path)
    page.set_viewport_size({"width": 794, "height": 1123})  # A4
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.locator("#figure-heat .static svg").is_visible()
    assert not page.locator("#figure-heat .interactive").is_visible()
    assert not page.locator("#controls").is_visible()


@pytest.mark.parametrize(
    ("theme", "width", "n_rows"),
    [
        # The rows of a table differ in their numbers only, and looking at all of them takes most of the time.
        pytest.param(DARK, NARROW, 3, id="dark-narrow"),
        pytest.param(DARK, NARROW, None, id="dark-narrow-every-row", marks=pytest.mark.slow),
        pytest.param(LIGHT, WIDE, None, id="light-wide-every-row", marks=pytest.mark.slow),
        pytest.param(DARK, WIDE, None, id="dark-wide-every-row", marks=pytest.mark.slow),
        pytest.param(LIGHT, NARROW, None, id="light-narrow-every-row", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_serious_violation(shown: Shared, theme: Any, width: int, n_rows: int | None) -> None:
    page = shown(theme.name, width)
    page.focus("#figure-heat .interactive [tabindex='0']")
    page.keyboard.press("Enter")
    page.locator("#detail .strip svg").wait_for()
    page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    page.evaluate(
        "n => document.querySelectorAll('tbody').forEach(body => "
        "[...body.rows].forEach((row, i) => { row.hidden = n !== null && i >= n; }))",
        n_rows,
    )
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        f"{violation['id']}: {violation['help']}: {node['html'][:150]} {node['failureSummary'][:200]}"
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
    assert serious == []
    assert len(found["passes"]) > 10


DRAW = """([spec, rows]) => {
    const place = document.createElement("div");
    document.querySelector("main").append(place);
    spec.datasets = { rows };
    spec.width = 700;
    const look = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, logLevel: vega.Error };
    return vegaEmbed(place, spec, look).then(() => {
        place.remove();
        return place.querySelectorAll("[aria-roledescription]").length;
    });
}"""


def test_every_figure_can_be_drawn_by_both_renderers(shown: Shared, page_path: Path) -> None:
    page = shown()
    pictures = Page.of([read_run(page_path.parent)]).pictures
    assert len(pictures) >= 8
    for picture in pictures:
        panel = next(iter(picture.figure.panels.titles)) if picture.figure.panels else None
        figure = replace(picture.figure, rows=picture.figure.rows_of(panel))
        columns = {axis.column for axis in (figure.x, figure.y)}
        rows = json.loads(figure.rows.assign(said="a mark").to_json(orient="records"))
        drawable = [row for row in rows if all(row[column] is not None for column in columns)]
        marks = page.evaluate(DRAW, [interactive.spec(figure, data="rows", says="said"), rows])
        assert marks >= len(drawable) > 0, picture.name
        assert draw(picture.figure).axes, picture.name


HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_hostile_text_in_a_run_is_inert(reader: Reader, run_directory: Path, edit_lines: Edit) -> None:
    def rename(record: dict[str, Any]) -> dict[str, Any]:
        changed = {"impl": HOSTILE} if record["impl"] == "paddle" else {}
        if record.get("labels") == "wordfreq:en":
            changed["labels"] = f"counts:{HOSTILE}"
        if record["status"] != "ok" and record.get("reason"):
            changed["reason"] = HOSTILE
        return record | changed

    for name in ("timings.jsonl", "parity.jsonl"):
        edit_lines(run_directory / name, rename)
    meta = json.loads((run_directory / "run.json").read_text())
    meta |= {"command": HOSTILE, "commit": HOSTILE, "machine": {**meta["machine"], "cpu": HOSTILE}}
    (run_directory / "run.json").write_text(json.dumps(meta))
    page = reader.open(write_report([run_directory]))
    title = page.title()
    page.focus("#figure-heat .interactive [tabindex='0']")
    page.keyboard.press("Enter")
    page.locator("#detail .strip svg").wait_for()
    page.select_option("#controls select[name=subject]", label=HOSTILE)
    assert page.title() == title != "owned"
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("#repeat pre").first.inner_text()
    assert page.locator("script:not([type])").count() == 4


def test_a_script_that_the_page_does_not_know_is_refused_by_its_policy(browser: Any, page_path: Path) -> None:
    changed = page_path.with_name("changed.html")
    changed.write_text(page_path.read_text().replace("<main>", f"<main>{HOSTILE}", 1))
    other = Reader(browser)
    page = other.open(changed)
    assert page.title() != "owned"
    assert any("Content Security Policy" in line for line in other.noise)
    other.close()
