"""Headless Chromium through its own protocol; no driver is needed."""

import asyncio
import itertools
import re
import shutil
import subprocess

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
LONGEST = 60


class Page:
    """One tab."""

    def __init__(self, socket):
        self.socket = socket
        self.ids = itertools.count(1)

    async def send(self, method, **parameters):
        number = next(self.ids)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self.socket.receive_json(timeout=LONGEST)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, script):
        found = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script):
        """Waits until an expression is true; while a page loads, what it names may not be there yet."""
        guarded = f"(() => {{ try {{ return Boolean({script}) }} catch {{ return false }} }})()"
        async with asyncio.timeout(LONGEST):
            while not await self.evaluate(guarded):
                await asyncio.sleep(0.02)

    async def press(self, key):
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "")

    async def fill(self, selector, text):
        await self.evaluate(f"document.querySelector({selector!r}).focus()")
        await self.send("Input.insertText", text=text)


async def drive(profile, url, script):
    """Starts a browser with its own profile, opens `url` and runs `await script(page)`."""
    assert CHROMIUM is not None, f"none of {', '.join(NAMES)} is installed"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"]
    command = [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert browser.stderr is not None
    try:
        address = ""
        while not (found := re.search(r"ws://([\d.:]+)/", address)):
            address = await asyncio.to_thread(browser.stderr.readline)
            assert address or browser.poll() is None, "the browser did not start"
        async with aiohttp.ClientSession() as session:
            async with session.put(f"http://{found[1]}/json/new?{url}") as reply:
                tab = (await reply.json(content_type=None))["webSocketDebuggerUrl"]
            async with session.ws_connect(tab, max_msg_size=0) as socket:
                await script(Page(socket))
    finally:
        browser.kill()
        browser.wait()
        browser.stderr.close()
