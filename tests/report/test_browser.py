"""The page in a real browser: offline, no errors, working controls, the numbers of results.json, data stays data."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrl.continual.results import write
from contrl.report import page
from tests.report.conftest import RunWriter, append
from tests.report.devtools import Browser, find

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u202e☃ "


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    command = find()
    if command is None:
        pytest.skip("no chromium on this machine: the page was not opened in a browser (apt-get install chromium)")
    opened = Browser(command, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def two_stages(folder: Path, completion: str = "") -> Path:
    """A run of two stages, with its results and its page."""
    run = RunWriter(folder, ["plus", "minus"], num_items=40)
    for stage in range(3):
        if stage:
            run.train(stage)
        for task in ("plus", "minus"):
            share = 0.8 if stage and task == run.sequence[stage - 1] else 0.3
            run.score(stage, task, share, (lambda item, right: completion) if completion else None)
    return run.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = two_stages(tmp_path_factory.mktemp("browser") / "run")
    write(folder)
    page.build(folder, with_figures=False)
    return folder


def see_a_chart(browser: Browser) -> None:
    """Charts are drawn with tooltips when they come into sight; then back to the top."""
    browser.value("document.querySelector('figure[data-chart]').scrollIntoView()")
    browser.until("document.querySelector('.chart.is-live') !== null")
    browser.value("window.scrollTo(0, 0)")


CELLS = """[...document.querySelectorAll('#matrix-table td[data-row][data-column]')]
  .map(c => [c.dataset.row, c.dataset.column, c.dataset.value])"""


def matrix(browser: Browser) -> dict[tuple[int, int], float | None]:
    return {(int(r), int(c)): float(v) if v else None for r, c, v in browser.value(CELLS)}


def recorded(folder: Path) -> dict[tuple[int, int], float | None]:
    rows = json.loads((folder / "results.json").read_text())["matrix"]
    return {(r, c): cell and cell["value"] for r, row in enumerate(rows) for c, cell in enumerate(row)}


def colours(png: bytes) -> int:
    """How many different bytes a picture's data has: a blank one has a handful."""
    data, place = b"", 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + size]
        place += size + 12
    return len(set(zlib.decompress(data)))


@pytest.mark.parametrize("width", [1400, 400])
def test_it_opens_offline_without_an_error(browser: Browser, run: Path, width: int) -> None:
    browser.open(run / "report.html", width)
    see_a_chart(browser)
    assert browser.errors == []
    own = (run / "report.html").resolve().as_uri()
    assert [url for url in browser.requests if not url.startswith((own, "data:", "blob:"))] == []
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert colours(browser.picture()) > 50


def test_the_matrix_is_that_of_results_json(browser: Browser, run: Path, tmp_path: Path) -> None:
    browser.open(run / "report.html")
    assert matrix(browser) == recorded(run)
    changed = two_stages(tmp_path / "changed")
    score = {"stage": 2, "task": "plus", "metric": "success", "value": 0.0625, "n": 40, "se": 0.04}
    append(changed / "scores.jsonl", score)
    write(changed)
    page.build(changed, with_figures=False)
    browser.open(changed / "report.html")
    assert matrix(browser) == recorded(changed)
    assert matrix(browser)[2, 0] == 0.0625


def test_views_and_filters_work(browser: Browser, run: Path) -> None:
    browser.open(run / "report.html")
    for view in ("just-learned", "start", "absolute"):
        browser.value(f"document.querySelector('button[data-view={view}]').click()")
        assert browser.value("document.querySelector('#matrix-table').dataset.shows") == view
        shown = "[...document.querySelectorAll('#matrix-table td div[data-layer]')].filter(d => d.offsetParent)"
        assert browser.value(f"[...new Set({shown}.map(d => d.dataset.layer))]") == [view]
    articles = "[...document.querySelectorAll('article[data-filtered=samples]')].filter(a => a.offsetParent)"
    everything = browser.value(f"{articles}.length")
    assert everything > 0
    choose = """(() => { const s = document.querySelector('#samples-task'); s.value = %s;
      for (const kind of ['input', 'change']) s.dispatchEvent(new Event(kind, {bubbles: true})); })()"""
    for option in browser.value("[...document.querySelector('#samples-task').options].map(o => o.value)"):
        browser.value(choose % json.dumps(option))
        tasks = browser.value(f"[...new Set({articles}.map(a => a.dataset.task))]")
        count = browser.value(f"{articles}.length")
        assert tasks == [option] if option in ("plus", "minus") else count == everything


def test_hostile_data_is_shown_and_not_obeyed(browser: Browser, tmp_path: Path) -> None:
    """A script, an image with a handler, a megabyte, right-to-left marks and NaN in what a run recorded."""
    folder = two_stages(tmp_path / "<b>run", HOSTILE + "x" * 1_000_000)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": 1, "step": 41, "task": "plus", "name": "reward", "value": NaN}\n')
    append(folder / "metrics.jsonl", {"stage": 1, "step": 41, "task": "plus", "name": HOSTILE, "value": 1.0})
    page.build(folder, with_figures=False)
    assert (folder / "report.html").stat().st_size < 4_000_000
    browser.open(folder / "report.html")
    see_a_chart(browser)
    assert browser.errors == []
    assert browser.value("window.hacked === undefined")
    assert browser.value("[...document.images].length") == 0
    assert browser.value("document.body.textContent.includes(\"onerror='window.hacked = 2'\")")
    assert browser.value("document.querySelector('#warnings').textContent.includes('reward')")
