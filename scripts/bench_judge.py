"""Throughput of judge=openai against a server of known latency, with and without planted faults.

    python scripts/bench_judge.py --latency 0.5 --concurrency 64 [--faults 0.3]

Throughput is compared with what the server's latency allows: `concurrency` requests at a time, each as long as the
latency. Server and client run in two processes on this machine.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from gradfiltering.judging.base import Question
from gradfiltering.judging.chat_endpoint import ChatEndpoint, RetrySettings
from gradfiltering.judging.conversation import ConversationSettings
from gradfiltering.judging.judge_prompt import JudgePrompt
from gradfiltering.judging.openai_judge import ChatRequest, OpenAIJudge
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.spending import Prices, SpendingLimits

SERVER = Path(__file__).with_name("chat_server.py")
WORDS = "An answer of some length, with a reason and an example. " * 12


def questions(prompts: int) -> list[Question]:
    """Pairs in both orders; no two texts are alike."""
    pair_questions = []
    for number in range(prompts):
        prompt = Prompt("bench", str(number), f"Question {number}?", "", None)
        first_answer, second_answer = f"One {number}. {WORDS}", f"Two {number}. {WORDS}"
        pair_questions += [
            Question(prompt, first_answer, second_answer, 0, 0),
            Question(prompt, second_answer, first_answer, 1, 0),
        ]
    return pair_questions


def make_judge(url: str, concurrency: int, timeout: float, replies: Path) -> OpenAIJudge:
    """Make a judge that waits shortly before it asks again."""
    endpoint = ChatEndpoint(
        url, None, {}, concurrency, timeout, RetrySettings(attempts=12, first_wait=0.05, longest_wait=2.0)
    )
    conversation = ConversationSettings(JudgePrompt("corrected", "text", None), 1024, 3, str(replies))
    limits = SpendingLimits(Prices(None, None), None, None)
    return OpenAIJudge(endpoint, ChatRequest("bench", 0.0, "max_tokens", {}), conversation, limits)


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge through a server of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1030, help="each asked in both orders (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--latency", type=float, default=0.5, help="of the server, seconds (%(default)s)")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls that go wrong (%(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, help="of the client, seconds (%(default)s)")
    options = parser.parse_args(arguments)
    command = [sys.executable, str(SERVER), "--latency", str(options.latency), "--faults", str(options.faults)]
    server = subprocess.Popen([*command, "--client-timeout", str(options.timeout)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        pair_questions = questions(options.prompts)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "replies.sqlite"
            client = make_judge(f"http://127.0.0.1:{port}/v1", options.concurrency, options.timeout, file)
            client.endpoint.check_secrets()  # the client's library is imported before the clock starts
            started, busy = time.perf_counter(), time.process_time()
            replies = client.answer_questions(pair_questions)
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
        server_log = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/log"))
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    allowed = math.ceil(len(server_log["log"]) / options.concurrency) * options.latency
    judged = sum(reply.scores is not None for reply in replies)
    print(f"{len(pair_questions)} questions, {judged} judged, {len(server_log['log'])} requests in {seconds:.1f} s")
    print(f"{len(server_log['log']) / seconds:.1f} requests/s; {allowed / seconds:.1%} of what the latency allows")
    print(f"client's processor time per request: {1000 * busy / len(server_log['log']):.2f} ms")
    print(f"most under way at the server: {server_log['most_under_way']}")


if __name__ == "__main__":
    main()
