"""Files whose rows are of several schemas: each row is read, counted and given back as what it is."""

import json
import string

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.export import name_run
from gradfiltering.data.schemas import EMPTY_RESPONSE, NO_ASSISTANT, NO_SCHEMA
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

TALK = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "right"}]
SHAREGPT = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "right"}]
ROWS = [
    {"messages": TALK},
    {"instruction": "One?", "input": "", "output": "right"},
    {"conversations": SHAREGPT},
    {"prompt": "One?", "completion": "right"},
    {"question": "One?", "answer": "right"},
    {"text": "right"},
]
LAYOUT = "<|user|>\nOne?\n<|assistant|>\nright</s>"


@pytest.fixture
def encode(write_rows, file_source, cache, tokenizer):
    def run(rows):
        dataset = file_source(write_rows(rows)).load(0)
        return dataset, Encoder(tokenizer, 512, cache).encode(dataset)

    return run


def test_each_row_is_read_in_its_own_schema_and_all_share_one_layout(encode, tokenizer):
    dataset, examples = encode(ROWS)
    assert dataset.schema.name == "mixed" and dataset.template == "conversation"
    assert dataset.contents.schemas == {
        "messages (messages)": 1, "alpaca (instruction, output)": 1, "messages (conversations)": 1,
        "prompt_completion (prompt, completion)": 1, "prompt_completion (question, answer)": 1, "text (text)": 1,
    }  # fmt: skip
    assert examples.unscored == []
    assert [tokenizer.decode(row["input_ids"]) for row in examples.table] == [LAYOUT] * 5 + ["right</s>"]
    for row in list(examples.table)[:5]:
        start, stop = row["supervised"]
        assert tokenizer.decode(row["input_ids"][start:stop]) == "right</s>"
    line = dataset.contents.describe()[0]
    assert line.startswith("rows by schema: messages (messages): 1, alpaca (instruction, output): 1")


def test_without_a_conversation_the_template_of_the_options_is_taken(encode, tokenizer):
    dataset, examples = encode([ROWS[1], ROWS[3]])
    assert dataset.template == "plain" and dataset.schema.name == "mixed"
    assert [tokenizer.decode(row["input_ids"]) for row in examples.table] == ["One?\nright</s>"] * 2


REASONS = {
    "no field of any": ({"note": "x"}, NO_SCHEMA),
    "an instruction without an output": ({"instruction": "a", "output": ""}, EMPTY_RESPONSE),
    "no answer": ({"messages": TALK[:1]}, NO_ASSISTANT),
    "a prompt without a completion": ({"prompt": "a", "completion": None}, EMPTY_RESPONSE),
    "an empty text": ({"text": " "}, EMPTY_RESPONSE),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_row_that_cannot_be_used_is_unscored_by_the_reason_of_its_schema(case, encode):
    row, reason = REASONS[case]
    _, examples = encode([*ROWS, row])
    assert examples.unscored == [(len(ROWS), reason)]


def test_a_rendering_beside_the_columns_is_no_schema_of_its_own(encode):
    """Alpaca's rows have a column `text`, the whole prompt, also where the output is empty."""
    rows = [{"instruction": "a", "output": output, "text": f"a {output}"} for output in ("b", "")]
    dataset, examples = encode(rows)
    assert dataset.schema.name == "alpaca" and examples.unscored == [(1, EMPTY_RESPONSE)]
    assert dataset.contents.unused == {"text": 2}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_given_back_as_they_came_and_by_schema(kind, tmp_path, write_rows, file_source, cache, tokenizer):
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        names = {name for row in ROWS[:4] for name in row}
        Dataset.from_list([{name: row.get(name) for name in names} for row in ROWS[:4]]).to_parquet(str(path))
    else:
        path = write_rows(ROWS[:4])
    dataset = file_source(path).load(0)
    assert Encoder(tokenizer, 512, cache).encode(dataset).unscored == []
    write_subset(RunFolder(tmp_path), dataset, [0, 1, 2], None)
    lines = [json.loads(line) for line in (tmp_path / "subset.jsonl").read_text("utf-8").splitlines()]
    without_nulls = [{name: value for name, value in row.items() if value is not None} for row in lines]
    assert without_nulls == ROWS[:3] and (kind == "parquet" or lines == ROWS[:3])
    entries = json.loads((tmp_path / "dataset_info.json").read_text("utf-8"))
    run_name = name_run(tmp_path)
    assert {name: (entry["file_name"], entry["formatting"]) for name, entry in entries.items()} == {
        f"{run_name}_messages": ("subset_messages.jsonl", "sharegpt"),
        f"{run_name}_instruction_output": ("subset_instruction_output.jsonl", "alpaca"),
        f"{run_name}_conversations": ("subset_conversations.jsonl", "sharegpt"),
    }
    alone = json.loads((tmp_path / "subset_conversations.jsonl").read_text("utf-8"))
    assert alone["conversations"] == SHAREGPT
    if kind == "parquet":
        assert pq.read_schema(tmp_path / "subset_rows.parquet").names == pq.read_schema(path).names


def test_heldout_rows_may_be_of_any_of_the_schemas(write_rows, file_source):
    pool, held = write_rows(ROWS), write_rows(ROWS[:1], "held.jsonl")
    dataset = file_source(pool, heldout=(held, 0, 0.0)).load(0)
    assert [turn.instruction for turn in dataset.heldout_turns()] == ["One?"]
    assert [source for _, source in dataset.heldout_questions()] == [None]
    with pytest.raises(UserError, match=r"hold out rows of the same schema"):
        file_source(held, heldout=(pool, 0, 0.0)).load(0)


def test_real_mixed_rows_are_all_scored(shared_data, file_source, cache, tokenizer):
    dataset = file_source(shared_data / "chat" / "mixed_300.jsonl").load(0)
    examples = Encoder(tokenizer, 4096, cache).encode(dataset)
    assert dataset.contents.schemas == {
        "messages (messages)": 100, "alpaca (instruction, output)": 100, "messages (conversations)": 100,
    }  # fmt: skip
    assert len(examples) == 300 and examples.unscored == [] and dataset.contents.unused == {}


NAMES = st.sampled_from(
    ["instruction", "input", "output", "messages", "conversations", "prompt", "completion", "text", "system", "history",
     "tools", "functions", "role", "content", "from", "value", "weight", "train_detail", "tool_calls", "function_call",
     "name", "arguments", "function", "reasoning_content", "chat_template_kwargs", "begin_offset", "chosen"]
)  # fmt: skip
TEXTS = st.text(string.ascii_letters + " \n\x00\ud800é", max_size=5) | st.sampled_from(["user", "assistant", "gpt"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": TEXTS | st.none(), "weight": VALUES, "train_detail": VALUES, "tool_calls": VALUES,
        "reasoning_content": VALUES, "name": VALUES, "function_call": VALUES,
    },
)  # fmt: skip
HOSTILE_ROWS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=5) | st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=4)}, optional={"tools": VALUES, "chat_template_kwargs": VALUES}
)
MARKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}:{{ m.content }};{% endif %}{% endfor %}"
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(HOSTILE_ROWS, min_size=1, max_size=4), marked=st.booleans())
def test_hostile_rows_end_in_examples_reasons_or_a_user_error(
    rows, marked, tmp_path, file_source, cache, make_tokenizer
):
    path = tmp_path / "hostile.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *ROWS[:2]]))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MARKING if marked else None
    try:
        dataset = file_source(path).load(0)
        examples = Encoder(tokenizer, 64, cache).encode(dataset)
    except UserError as error:
        assert str(error)
        return
    reasons = dict(examples.unscored)
    assert sorted([*examples.example_ids.tolist(), *reasons]) == list(range(len(rows) + 2)) and all(reasons.values())
    write_subset(RunFolder(tmp_path), dataset, list(range(len(dataset))), None)
