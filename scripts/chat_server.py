"""A chat-completions server for tests and measurements: fixed latency, planted faults, a log of all requests.

    python scripts/chat_server.py --latency 0.2 --faults 0.3

prints its port on the first line. GET /log returns [digest of the request, what was done with it] for every request.
It judges by a digest of the request, so the same question always gets the same two scores.
"""

import argparse
import asyncio
import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

from aiohttp import web

KINDS = ("429", "500", "timeout", "cut", "garbage", "slow")


class Server:
    """Replies, and what was asked.

    Attributes:
        log: [digest of the request, what was done with it] of every request.
        most_under_way: most requests at a time.
        keys: `Authorization` headers that were sent.
    """

    def __init__(self, latency: float, faults: float, unreadable: float, client_timeout: float, seed: int):
        self.latency, self.faults, self.unreadable = latency, faults, unreadable
        self.client_timeout = client_timeout
        self.random = random.Random(seed)
        self.log: list[tuple[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.keys: set[str] = set()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        url = f"http://{request.host}/v1"
        digest = hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
        kind = self.random.choice(KINDS) if self.random.random() < self.faults else "good"
        self.log.append((digest, kind))
        self.keys.add(request.headers.get("Authorization", ""))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.answer(request, body, digest, kind)
        finally:
            self.under_way -= 1

    async def answer(self, request: web.Request, body: dict[str, Any], digest: str, kind: str) -> web.StreamResponse:
        await asyncio.sleep(self.latency)
        if kind == "429":
            headers = {"retry-after": "0.1"} if self.random.random() < 0.5 else {}
            return web.json_response({"error": {"message": "too many requests"}}, status=429, headers=headers)
        if kind == "500":
            return web.Response(status=500, text="<html>oops</html>")
        if kind == "timeout":
            await asyncio.sleep(self.client_timeout * 3)
        if kind == "slow":
            await asyncio.sleep(self.client_timeout * 0.3)
        if kind == "garbage":
            odd = ["<html>hello</html>", "{", "[]", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}', ""]
            return web.Response(text=self.random.choice(odd), content_type="application/json")
        text = f"{int(digest[:4], 16) % 10 + 1} {int(digest[4:8], 16) % 10 + 1}\nBecause."
        if int(digest[8:12], 16) / 65536 < self.unreadable:
            text = "I like both answers."
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        content = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
        if kind == "cut":
            response = web.StreamResponse(
                headers={"Content-Length": str(len(content)), "Content-Type": "application/json"}
            )
            await response.prepare(request)
            await response.write(content[: len(content) // 2])
            if request.transport is not None:
                request.transport.abort()
            return response
        return web.Response(body=content, content_type="application/json")

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response({"log": self.log, "most_under_way": self.most_under_way, "keys": sorted(self.keys)})


async def serve(server: Server) -> None:
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/log", server.show)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    _, port = runner.addresses[0]
    print(port, flush=True)
    await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds to each reply (%(default)s)")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls that go wrong (%(default)s)")
    parser.add_argument("--unreadable", type=float, default=0.0, help="share of replies without scores (%(default)s)")
    parser.add_argument("--client-timeout", type=float, default=1.0, help="seconds the client waits (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    asyncio.run(serve(Server(**vars(options))))


if __name__ == "__main__":
    main()
