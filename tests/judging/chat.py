"""Servers that speak the chat-completions protocol, and a judge that asks them."""

import json
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gradfiltering.judging.base import Question
from gradfiltering.judging.chat_endpoint import ChatEndpoint, RetrySettings
from gradfiltering.judging.conversation import ConversationSettings
from gradfiltering.judging.judge_prompt import JudgePrompt
from gradfiltering.judging.openai_judge import ChatRequest, OpenAIJudge
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.spending import Prices, SpendingLimits

ROOT = Path(__file__).parents[2]
QUICK = RetrySettings(attempts=12, first_wait=0.01, longest_wait=1.0)


@contextmanager
def faulty_server(**options):
    """`scripts/chat_server.py` in a process of its own; yields its address and a function that reads its log."""
    command = [sys.executable, str(ROOT / "scripts" / "chat_server.py")]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        yield f"{address}/v1", lambda: json.load(urllib.request.urlopen(f"{address}/log"))
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def completion(text, **fields):
    """What a server replies."""
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage, **fields}


@contextmanager
def scripted_server(*answers):
    """Gives the answers (status, headers, body) in turn, the last one for ever; yields its address and what it got."""
    got: list[dict] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            got.append({"headers": headers, "body": json.loads(body)})
            status, headers, content = left.pop(0) if len(left) > 1 else left[0]
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def questions(prompts: int) -> list[Question]:
    """Pairs in both orders; no two texts are alike."""
    made = []
    for number in range(prompts):
        prompt = Prompt("test", str(number), f"Question {number}?", "", None)
        one, two = f"One {number}.", f"Two {number}."
        made += [Question(prompt, one, two, 0, 0), Question(prompt, two, one, 1, 0)]
    return made


def make_judge(url, replies, key_variable=None, headers=None, concurrency=64, timeout=30.0, retries=QUICK, **options):
    """A judge with test-sized waits; on a busy machine an answer may take seconds."""
    given = dict(protocol=JudgePrompt("corrected", "text", None), temperature=0.0, token_limit_name="max_tokens",
                 request={}, asks=3, prices=Prices(None, None), max_requests=None, max_cost=None)  # fmt: skip
    assert not (unknown := options.keys() - given.keys()), unknown
    chosen = {**given, **options}
    return OpenAIJudge(
        endpoint=ChatEndpoint(url, key_variable, headers or {}, concurrency, timeout, retries),
        request=ChatRequest("test", chosen["temperature"], chosen["token_limit_name"], chosen["request"]),
        conversation=ConversationSettings(chosen["protocol"], 64, chosen["asks"], str(replies)),
        limits=SpendingLimits(chosen["prices"], chosen["max_requests"], chosen["max_cost"]),
    )


if __name__ == "__main__":  # a run that can be killed
    make_judge(sys.argv[1], sys.argv[2], timeout=1.0).answer_questions(questions(int(sys.argv[3])))
