"""Schemas, conversations and what of them is supervised."""

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gradfiltering.data.batches import IGNORED, collate
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.encoding import cut_to_length
from gradfiltering.data.export import name_run
from gradfiltering.data.json_rows import JsonRows
from gradfiltering.data.schemas import NO_ASSISTANT, Columns, find_candidates
from gradfiltering.data.templates import Turn, find_template
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.plain_text import replace_lone_surrogates
from gradfiltering.runs.run_folder import RunFolder

USUAL = Columns("instruction", "input", "output")
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "right"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "wrong"},
]
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}:{{ m.content }};{% endif %}{% endfor %}"
)


@pytest.fixture
def encode(write_rows, file_source, cache):
    """Encodes rows written to a file."""

    def run(rows, tokenizer, max_tokens=512, **options):
        records = file_source(write_rows(rows), **options).load(0)
        return records, Encoder(tokenizer, max_tokens, cache).encode(records)

    return run


def learnt(examples, position, tokenizer):
    """The supervised stretches of an example as text."""
    row = examples.table[position]
    spans = row["supervised"]
    return [tokenizer.decode(row["input_ids"][a:b]) for a, b in zip(spans[::2], spans[1::2], strict=True)]


@pytest.mark.parametrize(
    ("present", "name", "fields"),
    [
        (["instruction", "output", "text"], "alpaca", ("instruction", "input", "output")),
        (["prompt", "completion"], "prompt_completion", ("prompt", "completion")),
        (["prompt", "response"], "prompt_completion", ("prompt", "response")),
        (["question", "answer", "id"], "prompt_completion", ("question", "answer")),
        (["messages"], "messages", ("messages", "system")),
        (["id", "conversations"], "messages", ("conversations", "system")),
        (["text"], "text", ("text",)),
    ],
)
def test_the_schema_is_found_in_the_columns(present, name, fields):
    schema = find_candidates(present, USUAL, "auto", "mine")[0]
    assert schema.name == name and schema.fields[: len(fields)] == fields
    named = find_candidates([*present, "instruction", "output"], USUAL, name, "mine")
    assert {schema.name for schema in named} == {name}, "data.schema= must win"


def test_every_assistant_turn_is_supervised_and_closed(encode, tokenizer):
    records, examples = encode([{"messages": TALK}], tokenizer)
    row, end = examples.table[0], tokenizer.eos_token
    whole = f"<|system|>\nBe kind.\n<|user|>\nOne?\n<|assistant|>\nright{end}<|user|>\nTwo?\n<|assistant|>\nwrong{end}"
    assert tokenizer.decode(row["input_ids"]) == whole
    assert learnt(examples, 0, tokenizer) == [f"right{end}", f"wrong{end}"]
    labels = collate(examples.table[:1], 0, (1,)).labels[0]
    assert int((labels[1:] != IGNORED).sum()) == row["response_tokens"] == examples.response_tokens[0]
    asked = find_template(records.template)(Turn("One?", "", ""), tokenizer)
    assert asked == "<|user|>\nOne?\n<|assistant|>\n", "generation must see the layout that was trained on"


def test_sharegpt_reads_as_messages_do(encode, tokenizer):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    other = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    _, first = encode([{"messages": TALK}], tokenizer)
    records, second = encode([{"conversations": other}, {"conversations": other[1:], "system": "Be kind."}], tokenizer)
    assert second.table["input_ids"][0] == second.table["input_ids"][1] == first.table["input_ids"][0]
    assert second.table["supervised"][0] == first.table["supervised"][0]
    assert records.schema.turn(records.rows[0]) == Turn("One?", "", "right", "Be kind.")


def test_a_chat_template_that_marks_the_assistant_is_taken(encode, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MARKED
    _, examples = encode([{"messages": TALK}], tokenizer)
    assert tokenizer.decode(examples.table[0]["input_ids"]) == (
        "system:Be kind.;user:One?;A:right</s>user:Two?;A:wrong</s>"
    )
    assert learnt(examples, 0, tokenizer) == ["right</s>", "wrong</s>"]
    tokenizer.chat_template = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    _, unmarked = encode([{"messages": TALK}], tokenizer)
    assert "<|user|>" in tokenizer.decode(unmarked.table[0]["input_ids"]), "without marks the layout is ours"


def test_a_chat_template_that_refuses_a_row_leaves_it_unscored(encode, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + MARKED
    )
    _, examples = encode([{"messages": TALK}, {"messages": TALK[1:]}], tokenizer)
    assert examples.example_ids.tolist() == [1] and "no system" in examples.unscored[0][1]


def test_rows_without_an_assistant_are_unscored_and_an_error_if_all_are(encode, tokenizer):
    asked = {"messages": TALK[:2]}
    _, examples = encode([asked, {"messages": TALK}, {"messages": []}, {"messages": None}], tokenizer)
    assert examples.unscored == [(0, NO_ASSISTANT), (2, NO_ASSISTANT), (3, NO_ASSISTANT)]
    with pytest.raises(UserError, match=rf"rows\.jsonl can be scored: 1 × {NO_ASSISTANT}; give rows"):
        encode([asked], tokenizer)


def test_a_text_is_supervised_but_for_the_token_that_nothing_predicts(encode, tokenizer):
    _, examples = encode([{"text": "right wrong"}], tokenizer)
    row = examples.table[0]
    assert row["supervised"] == [1, len(row["input_ids"])] and row["response_tokens"] == len(row["input_ids"]) - 1
    assert row["input_ids"] == [*tokenizer("right wrong")["input_ids"], tokenizer.eos_token_id]


def test_half_a_surrogate_pair_is_tokenised_as_a_replacement(make_records, cache, tokenizer):
    rows = JsonRows.from_list([{"instruction": "a\ud800", "output": "b\udc00"}])
    examples = Encoder(tokenizer, 512, cache).encode(replace(make_records([("a", "", "b")]), rows=rows))
    assert tokenizer.decode(examples.table[0]["input_ids"]) == "a\ufffd\nb\ufffd</s>"
    assert replace_lone_surrogates("😀 é") == "😀 é"


def test_llama_factory_is_told_the_names_of_roles_and_parts(write_rows, file_source, tmp_path):
    rows = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}]
    write_subset(RunFolder(tmp_path), file_source(write_rows(rows)).load(0), [0], None)
    assert json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))[name_run(tmp_path)] == {
        "file_name": "subset.jsonl", "formatting": "sharegpt",
        "columns": {"messages": "conversations", "system": "system"},
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    }  # fmt: skip


stretches = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=6)


@settings(deadline=None, max_examples=300)
@given(stretches=stretches, max_tokens=st.integers(1, 40))
def test_a_cut_row_fits_and_keeps_what_can_be_learnt(stretches, max_tokens):
    pieces, count = [], 0
    for size, supervised in stretches:
        pieces.append((list(range(count, count + size)), supervised))
        count += size
    answer = {token for ids, supervised in pieces if supervised for token in ids}
    ids, spans = cut_to_length(pieces, max_tokens)
    cut = count > max_tokens
    assert len(ids) <= max_tokens and ids == list(range(len(ids)))
    inside = [token for a, b in zip(spans[::2], spans[1::2], strict=True) for token in ids[a:b]]
    assert set(inside) <= answer and set(ids[1:]) & answer == set(inside), "spans and supervised tokens differ"
    if not cut:
        assert ids == list(range(count))
    elif answer - {0} and min(answer - {0}) < max_tokens:
        assert inside and spans[-1] == len(ids), "a cut row ends in what can be learnt"


def test_the_screen_shows_the_schema_and_an_example_with_the_supervised_part_set_off(encode, tokenizer, cache):
    records, examples = encode([{"messages": TALK}], tokenizer)
    console = Console(record=True, force_terminal=True, width=200, file=io.StringIO())
    Encoder(tokenizer, 512, cache).show_example(records, examples, console)
    shown = console.export_text(styles=True)
    assert "schema messages (messages); a row as the model reads it, with what it learns in green:" in shown
    assert "\x1b[1;32mright" in shown and "\x1b[2m<|system|>" in shown
    plain_console = Console(record=True, width=200, file=io.StringIO())
    Encoder(tokenizer, 512, cache).show_example(records, examples, plain_console)
    assert "a row as the model reads it:" in plain_console.export_text()
