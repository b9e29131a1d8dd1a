"""Open and search a page in headless Chromium: size, first paint, searching, sorting, console and network.

    export PYTHONPATH=.  # for the browser among the tests
    python scripts/bench_page.py logs/runs/…/report.html --search poem python "three tips" --screenshots shots/

First paint is the browser's first-contentful-paint. A search or a sort is timed from the event to the frame that shows
its answer. Needs Chromium and what the tests need (`pip install -e '.[dev]'`).
"""

import argparse
import asyncio
import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.reports.browsing import browse

SEARCH = """new Promise((done) => {
  const field = document.getElementById("q"), started = performance.now();
  field.value = TEXT;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  const shown = () => done([performance.now() - started, document.getElementById("count").textContent]);
  requestAnimationFrame(() => requestAnimationFrame(shown));
})"""
SORT = """new Promise((done) => {
  const started = performance.now();
  document.querySelectorAll("#grid-head button")[NUMBER].click();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
})"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main(command_line: Sequence[str] | None = None) -> None:
    """Measure one page and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--search", nargs="+", default=["a", "the", "poem", "no such words"])
    parser.add_argument("--screenshots", type=Path, help="folder for pictures: 1440 and 390 pixels, light and dark")
    arguments = parser.parse_args(command_line)
    measurements: dict[str, Any] = {"size_mb": round(arguments.page.stat().st_size / 1e6, 2)}

    async def measure(tab: Any) -> None:
        measurements["first_paint_ms"] = round(await tab.evaluate(PAINT))
        await tab.evaluate("document.getElementById('explorer').scrollIntoView()")
        searches = {}
        for text in arguments.search:
            milliseconds, shown_count = await tab.evaluate(SEARCH.replace("TEXT", json.dumps(text)))
            searches[text] = f"{milliseconds:.0f} ms: {shown_count}"
        await tab.evaluate(SEARCH.replace("TEXT", '""'))
        columns = await tab.evaluate("document.querySelectorAll('#grid-head button').length")
        sorts = [await tab.evaluate(SORT.replace("NUMBER", str(number))) for number in range(columns)]
        measurements.update(search=searches, slowest_sort_ms=round(max(sorts)), sorts=columns)

    path = arguments.page.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        console_messages, requested_urls = browse(Path(scratch), path, measure)
    measurements.update(console=console_messages, requests=[url for url in requested_urls if url != path.as_uri()])
    print(json.dumps(measurements, indent=2, ensure_ascii=False))
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
        for width in (1440, 390):
            for theme in ("light", "dark"):
                take_picture(path, width, theme, arguments.screenshots / f"{width}-{theme}.png")


def take_picture(page: Path, width: int, theme: str, file: Path) -> None:
    """Write a picture of the whole page."""

    async def script(tab: Any) -> None:
        await asyncio.sleep(1)  # charts move into place
        size = (await tab.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
        shot = await tab.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))

    with tempfile.TemporaryDirectory() as scratch:
        browse(Path(scratch), page, script, width, theme)


if __name__ == "__main__":
    main()
