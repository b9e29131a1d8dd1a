"""The page in a real browser: text stays text, nothing is loaded, it is fast, and everybody can use it."""

import asyncio
import json

import pytest

from gradfiltering.reports.page.run_page import write_page
from tests.judging.browser import CHROMIUM
from tests.reports.browsing import (
    THEMES,
    WIDTHS,
    assert_accessible,
    axe,
    back_on_screen,
    browse,
    off_the_sheet,
    put_on_paper,
)
from tests.reports.page.runs import plain_rows, write_whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
OWNED = "document.title='owned'"
HOSTILE = [
    f"<script>{OWNED}</script>",
    f"</script><script>{OWNED}</script>",
    f"</textarea><img src=x onerror=\"{OWNED}\">",
    f"<svg onload={OWNED}> &lt;b&gt; \"double\" 'single' `tick` {{{{ 7*7 }}}}",
    "🙂 👩‍👩‍👧 \u202e right to left \u202c שלום עולم",
    "<b>" + "x" * 100_000,
    "nul \x00 bell \x07",
    "half \ud83d a pair",
    "\u2028\u2029]]> --> <!--",
]  # fmt: skip
SHOWN = {6: "nul ␀ bell ␇", 7: "half \ufffd a pair"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page whose first rows are hostile, in text and in the names of sources."""
    rows = plain_rows(60)
    for number, text in enumerate(HOSTILE):
        rows[number] = {"instruction": text, "input": "", "output": text, "source": text[:200]}
    folder = write_whole(tmp_path_factory.mktemp("hostile") / "run", rows)
    return write_page(folder, "all", figures=False)


def test_hostile_rows_are_text_nothing_runs_and_nothing_is_loaded(tmp_path, page):
    async def script(tab):
        title = await tab.evaluate("document.title")
        await tab.evaluate("document.getElementById('sort').value = 'id'")
        await tab.evaluate("document.getElementById('sort').dispatchEvent(new Event('change'))")
        for number, text in enumerate(HOSTILE):
            await tab.evaluate(f"document.getElementById('row-{number}').click()")
            shown = await tab.evaluate("[...document.querySelectorAll('#detail pre')].map((p) => p.textContent)")
            assert shown == [SHOWN.get(number, text)] * 2
            await tab.evaluate("document.getElementById('close').click()")
        options = await tab.evaluate("[...document.querySelectorAll('#f-source option')].map((o) => o.textContent)")
        assert any(option.startswith("<script>") for option in options)
        await asyncio.sleep(0.3)
        assert await tab.evaluate("document.title") == title, "a row's text was run"
        assert (
            await tab.evaluate("document.querySelectorAll('main img, main b:not(.warnings b), svg[onload]').length")
            == 0
        )

    said, asked = browse(tmp_path, page, script)
    assert said == []
    assert asked == [page.as_uri()]


def test_search_filters_sorting_and_keys(tmp_path, page):
    async def script(tab):
        count = "document.getElementById('count').textContent"
        first = "document.querySelector('#row-0 .cell.prompt').textContent"
        await tab.fill("#q", "NUMBER 42")
        assert await tab.evaluate(count) == "1 of 60 rows" and await tab.evaluate(first) == "Name number 42."
        assert float(await tab.evaluate("document.getElementById('explorer').dataset.milliseconds")) < 200
        await tab.evaluate("document.getElementById('clear').click()")
        await tab.evaluate("document.getElementById('f-selected').value = '1'")
        await tab.evaluate("document.getElementById('f-selected').dispatchEvent(new Event('input', {bubbles: true}))")
        assert await tab.evaluate(count) == "15 of 60 rows"
        await tab.evaluate("document.getElementById('clear').click()")
        for _ in range(2):
            await tab.evaluate("document.querySelector('#grid-head .id button').click()")
        assert await tab.evaluate("document.querySelector('#row-0 .cell.id').textContent") == "59"
        assert await tab.evaluate("document.querySelector('#grid-head .id').getAttribute('aria-sort')") == "descending"
        await tab.evaluate("document.getElementById('grid').focus()")
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            await tab.press(key)
        assert await tab.evaluate("document.getElementById('detail-title').textContent") == "Row 57"
        assert await tab.evaluate("document.querySelectorAll('#grid-body .row').length") < 40, "only rows in view"

    assert browse(tmp_path, page, script)[0] == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(tmp_path, tmp_path_factory, page, theme, width):
    code = axe(tmp_path_factory.getbasetemp())

    async def script(tab):
        await tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        for place in ("page", "dialog"):
            if place == "dialog":
                await tab.evaluate("document.querySelector('#row-0').click()")
            await assert_accessible(tab, code, f"{place}, {theme}, {width} px")

    browse(tmp_path, page, script, width, theme)


def test_titles_of_axes_are_whole_on_a_phone(tmp_path, page):
    cut = """[...document.querySelectorAll(".plot")].flatMap((plot) => {
      const room = plot.getBoundingClientRect();
      return [...plot.querySelectorAll(".role-axis-title text")].filter((title) => {
        const box = title.getBoundingClientRect();
        const across = box.left < room.left - 1 || box.right > room.right + 1;
        return across || box.top < room.top - 1 || box.bottom > room.bottom + 1;
      }).map((title) => title.textContent);
    })"""

    async def script(tab):
        assert await tab.evaluate("document.querySelectorAll('.plot .role-axis-title text').length") > 5
        assert await tab.evaluate(cut) == []

    browse(tmp_path, page, script, 390)


@pytest.mark.parametrize("width", WIDTHS)
def test_paper_shows_all_of_the_page_and_nothing_to_click(tmp_path, page, width):
    """Charts keep to their columns, rows of all screens are there, closed parts are open, a dark page is light."""
    seen = "[...document.querySelectorAll('#grid-body .row')].length"

    async def script(tab):
        on_screen = await tab.evaluate(seen)
        closed = await tab.evaluate("document.querySelectorAll('details:not([open])').length")
        await put_on_paper(tab, "dark")
        assert await off_the_sheet(tab) == []
        assert await tab.evaluate(seen) == 60 > on_screen
        tops = await tab.evaluate(
            "[...document.querySelectorAll('#grid-body .row')].map((row) => row.getBoundingClientRect())"
            ".every((box, place, all) => place === 0 || box.top >= all[place - 1].bottom - 1)"
        )
        assert tops, "rows lie on each other"
        shut = "[...document.querySelectorAll('details:not([open])')].filter((one) => one.checkVisibility()).length"
        assert await tab.evaluate(shut) == 0
        controls = (
            "[...document.querySelectorAll('button, input, select')].filter((one) => one.checkVisibility()).length"
        )
        assert await tab.evaluate(controls) == 0
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        await back_on_screen(tab, "dark")
        assert await tab.evaluate("document.querySelectorAll('details:not([open])').length") == closed
        assert await tab.evaluate(seen) == on_screen
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"

    assert browse(tmp_path, page, script, width, "dark")[0] == []


def test_paper_says_how_many_rows_it_leaves_out(tmp_path):
    page = write_page(write_whole(tmp_path / "run", plain_rows(130)), "all", figures=False)

    async def script(tab):
        await put_on_paper(tab, "light")
        assert await tab.evaluate("document.querySelectorAll('#grid-body .row').length") == 100
        assert (
            await tab.evaluate("document.getElementById('count').textContent")
            == "130 of 130 rows; the first 100 follow"
        )

    browse(tmp_path, page, script)


SAVED = """(() => {
  window.saved = {};
  URL.createObjectURL = (blob) => { window.blob = blob; return "blob:none"; };
  HTMLAnchorElement.prototype.click = function () { window.saved[this.download] = window.blob; };
})()"""


def test_filtered_rows_and_the_edited_subset_are_saved(tmp_path, page):
    async def lines_of(tab, name):
        text = await tab.evaluate(f"window.saved[{name!r}].text()")
        return [json.loads(line) for line in text.strip("\n").split("\n")]

    async def script(tab):
        await tab.evaluate(SAVED)
        await tab.fill("#q", "number 41")
        await tab.evaluate("document.getElementById('export').click()")
        rows = await lines_of(tab, "rows.jsonl")
        assert sorted(row["example_id"] for row in rows) == [41], "what the filter shows, and no other"
        assert rows[0]["prompt"] == f"Name number {rows[0]['example_id']}." and {"rank", "selected", "why"} <= set(
            rows[0]
        )
        await tab.evaluate("document.getElementById('clear').click()")
        first, last = [
            int(await tab.evaluate(f"document.querySelector('#row-{place} .cell.id').textContent")) for place in (0, 20)
        ]
        await tab.evaluate("document.getElementById('grid').focus()")
        await tab.press("x")
        await tab.evaluate("document.querySelector('#row-20 .toggle').click()")
        words = await tab.evaluate("document.getElementById('edits').textContent")
        assert words == "Changed by hand: 1 added, 1 dropped; the subset has 15 rows."
        await tab.evaluate("document.getElementById('save-edited').click()")
        subset = await lines_of(tab, "subset_edited.jsonl")
        subset_ids = [row["example_id"] for row in subset]
        assert len(subset) == 15 and subset_ids == sorted(subset_ids)
        assert last in subset_ids and first not in subset_ids
        await tab.evaluate("document.getElementById('undo').click()")
        assert await tab.evaluate("document.getElementById('undo').hidden")

    assert browse(tmp_path, page, script)[0] == []


def test_full_texts_are_in_the_table_and_terms_are_explained_by_keyboard(tmp_path, page):
    async def script(tab):
        await tab.evaluate("document.getElementById('texts').click()")
        assert await tab.evaluate("document.querySelectorAll('#grid-body .row').length") == 50
        await tab.evaluate("document.getElementById('more').click()")
        assert await tab.evaluate("document.querySelectorAll('#grid-body .row').length") == 60
        lengths = "[...document.querySelectorAll('#grid-body .cell.prompt')].map((cell) => cell.textContent.length)"
        assert max(await tab.evaluate(lengths)) > 200_000, "prompt and response stand there in full"
        await tab.send("Emulation.setFocusEmulationEnabled", enabled=True)  # a headless tab has no focus of its own
        await tab.evaluate("document.querySelector('dfn').focus()")
        await asyncio.sleep(0.3)
        assert await tab.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"
        assert await tab.evaluate("document.getElementById('tip').textContent.length") > 20
        await tab.press("Escape")
        assert await tab.evaluate("document.getElementById('tip').hidden")

    assert browse(tmp_path, page, script)[0] == []
