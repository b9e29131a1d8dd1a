"""A page of the report in a real browser: what it says and asks for, and what axe-core finds in it."""

import asyncio
import functools
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.judging.browser import drive

WIDTHS, THEMES = (1200, 390), ("light", "dark")
AXE = "axe.run({resultTypes: ['violations']}).then((r) => JSON.stringify(r.violations))"
# Visible elements that reach beyond what the margins leave of A4 upright (18 cm) and, where asked for, of Letter on its
# side (24.9 cm), and charts that reach out of their column.
OFF_THE_SHEET = """(() => {
  const cm = 96 / 2.54, right = (one) => one.getBoundingClientRect().right;
  const wide = (one) => getComputedStyle(one).page === "wide" || (one.parentElement && wide(one.parentElement));
  const off = [...document.querySelectorAll("main *")].filter((one) => one.checkVisibility() && !one.closest("svg")
    && right(one) > (wide(one) ? 24.9 : 18) * cm + 1);
  const plots = [...document.querySelectorAll(".plot svg")];
  const out = plots.filter((one) => right(one) > right(one.closest("figure")) + 1);
  return [...off, ...out].map((one) => one.outerHTML.slice(0, 150));
})()"""


def browse(
    tmp_path: Path, path: Path, script: Callable[[Any], Awaitable[None]], width: int = 1200, theme: str = "light"
) -> tuple[list[Any], list[str]]:
    """Opens the page, runs the script, and gives back what was said in the console and asked of the network."""
    noticed = []

    async def whole(tab):
        async def send(method, **parameters):
            number = next(tab.ids)
            await tab.socket.send_json({"id": number, "method": method, "params": parameters})
            while True:
                message = await tab.socket.receive_json(timeout=60)
                if message.get("id") == number:
                    assert "error" not in message, message
                    return message["result"]
                noticed.append(message)

        tab.send = send
        for domain in ("Runtime", "Log", "Network", "Page"):
            await tab.send(f"{domain}.enable")
        phone = width < 600
        await tab.send("Emulation.setDeviceMetricsOverride", width=width, height=850, deviceScaleFactor=1, mobile=phone)
        await tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        await tab.send("Page.navigate", url=path.as_uri())
        await tab.until("location.protocol === 'file:' && document.readyState === 'complete'")
        await tab.until("document.querySelector('#explorer:not([data-ready])') === null")
        await tab.evaluate("Promise.all([...document.querySelectorAll('.plot')].map(gf.draw)).then(() => true)")
        await script(tab)

    asyncio.run(drive(tmp_path / "profile", "about:blank", whole))
    said = [m["params"] for m in noticed if m["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
    said += [m["params"]["entry"] for m in noticed if m["method"] == "Log.entryAdded"]
    asked = [m["params"]["request"]["url"] for m in noticed if m["method"] == "Network.requestWillBeSent"]
    return said, [url for url in asked if not url.startswith("data:")]


@functools.cache
def axe(folder) -> str:
    """axe-core from npm, where there is one."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, so axe-core cannot be had")
    done = subprocess.run(
        ["npm", "install", "--prefix", str(folder), "--no-save", "axe-core@4"], capture_output=True, text=True
    )
    found = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not found.is_file():
        pytest.skip(f"axe-core cannot be had from npm: {done.stderr[-200:]}")
    return found.read_text("utf-8")


async def assert_accessible(tab, code, what):
    """axe-core finds nothing, and the page does not scroll sideways."""
    await tab.evaluate(code)
    problems = [
        (one["id"], one["nodes"][0]["html"][:200], one["nodes"][0].get("failureSummary"))
        for one in json.loads(await tab.evaluate(AXE))
    ]
    assert problems == [], f"{what}: {problems}"
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert await tab.evaluate(fits), f"{what}: the page scrolls sideways"


async def put_on_paper(tab, theme):
    """What a browser does to print: it says so while the page still has its size on the screen, then lays it out."""
    await tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    features = [{"name": "prefers-color-scheme", "value": theme}]
    await tab.send("Emulation.setEmulatedMedia", media="print", features=features)


async def off_the_sheet(tab):
    """What would be cut off on paper."""
    return await tab.evaluate(OFF_THE_SHEET)


async def back_on_screen(tab, theme):
    """After printing."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    await tab.send("Emulation.setEmulatedMedia", media="", features=features)
    await tab.evaluate("dispatchEvent(new Event('afterprint'))")
