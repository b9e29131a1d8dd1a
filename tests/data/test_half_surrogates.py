"""Half a surrogate pair, which JSON can spell and UTF-8 cannot hold: no writer or reader ends a run on it."""

import io
import json
import sys

import pyarrow.parquet as pq
import pytest

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.row_texts import write_row_texts
from gradfiltering.errors import plain_words
from gradfiltering.judging.generation import render_prompts
from gradfiltering.judging.prompts import FilePrompts, HeldoutPrompts
from gradfiltering.judging.responses import Response, read_responses, write_responses
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.files import write_json
from gradfiltering.runs.logs import announce, log_to_file
from gradfiltering.runs.plain_text import replace_lone_surrogates, to_readable_json
from gradfiltering.runs.run_folder import RunFolder

HALF = "a\ud800b"
ROW = {"instruction": HALF, "output": HALF, "source": HALF, "system": HALF, f"field {HALF}": HALF}
TALK = {
    "messages": [
        {"role": "user", "content": HALF, "name": HALF},
        {"role": "assistant", "content": HALF, "reasoning_content": HALF,
         "tool_calls": [{"function": {"name": HALF, "arguments": {HALF: HALF}}}]},
    ],
    "tools": [{"type": "function", "function": {"name": HALF}}],
}  # fmt: skip
MARKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}:{{ m.content }};{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [None, MARKING])
@pytest.mark.parametrize("row", [ROW, TALK, {"text": HALF}], ids=["alpaca", "messages", "text"])
def test_rows_are_encoded_described_and_given_back(row, template, write_rows, tmp_path, file_source, make_tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 2)
    dataset = file_source(path, limit=1, heldout=(None, 1, 0.0)).load(0)
    tokenizer, cache = make_tokenizer(), Cache(tmp_path / "cache")
    tokenizer.chat_template = template
    rows = Encoder(tokenizer, 512, cache).encode_all(dataset)
    assert "a\ufffdb" in tokenizer.decode(rows.examples.table[0]["input_ids"]) and len(rows.heldout) == 1
    write_subset(RunFolder(tmp_path), dataset, [0], None)
    assert json.loads((tmp_path / "subset.jsonl").read_text("utf-8")) == row
    write_row_texts(tmp_path, dataset, cache)
    assert "a\ufffdb" in pq.read_table(tmp_path / "rows.parquet")["response"][0].as_py()
    for line in dataset.contents.describe():
        announce(line)


def test_prompts_and_answers_pass_through(tmp_path, tokenizer):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": HALF, "output": HALF, "id": HALF}) + "\n")
    heldout = [{"instruction": HALF, "input": "", "output": HALF, "system": HALF}]
    prompts = [
        *FilePrompts(str(tmp_path / "mine.jsonl"), None).load(None),
        *HeldoutPrompts(None, 0, None).load(heldout),
    ]
    texts = render_prompts(prompts, "plain", tokenizer)
    assert texts == ["a\ufffdb\n", "a\ufffdb\na\ufffdb\n"] and tokenizer(texts)
    response = Response("file", HALF, HALF, HALF, 1, 1, "eos", False)
    write_responses(tmp_path / "answers.jsonl", [response])
    assert read_responses(tmp_path / "answers.jsonl") == [response]


def test_files_of_a_run_hold_it(tmp_path):
    write_json(tmp_path / "summary.json", {HALF: ["é", HALF]})
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {HALF: ["é", HALF]}
    assert to_readable_json({"a": "é"}) == '{"a": "é"}' and to_readable_json(HALF) == '"a\\ud800b"'
    RunFolder(tmp_path).write_unscored([(0, f"the template refuses it: {HALF}")])
    assert pq.read_table(tmp_path / "unscored.parquet")["reason"][0].as_py().endswith("a\ufffdb")
    with log_to_file(tmp_path):
        announce(HALF)
    assert "a\\ud800b" in (tmp_path / "run.log").read_text("utf-8")
    assert replace_lone_surrogates("\ud83d\ude00 é") in ("\U0001f600 é", "\ud83d\ude00 é")


def test_a_terminal_that_cannot_show_a_text_ends_no_run(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with plain_words():
        print(f"é {HALF}")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9 a\\ud800b\n"


def test_prompt_files_may_be_json_arrays(tmp_path):
    rows = [{"prompt": "One?", "output": "right"}, {"instruction": "Two?", "input": "x"}]
    bodies = {
        "mine.json": json.dumps(rows), "mine.jsonl": json.dumps(rows), "mine.txt": "\n" + json.dumps(rows, indent=1),
        "lines.jsonl": "\ufeff" + "\r\n\r\n".join(map(json.dumps, rows)),
        "lines.json": "\n".join(map(json.dumps, rows)),
    }  # fmt: skip
    for name, body in bodies.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
        prompts = FilePrompts(str(tmp_path / name), None).load(None)
        assert [(prompt.question, prompt.reference) for prompt in prompts] == [("One?", "right"), ("Two?\n\nx", None)]
