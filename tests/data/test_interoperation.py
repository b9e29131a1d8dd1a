"""What other trainers make of `subset.jsonl` and `dataset_info.json`."""

import copy
import json

import pytest
from datasets import load_dataset

from gradfiltering.data.export import name_run
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

PAIR = {"prompt": "a", "completion": "b", "n": 1}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
ROWS = {
    "alpaca": {"instruction": "a", "input": "c", "output": "b", "tags": ["x"]},
    "alpaca without input": {"instruction": "a", "output": "b"},
    "pairs": PAIR,
    "messages": {"messages": TALK},
    "messages and system": {"messages": TALK, "system": "s"},
    "sharegpt": {"conversations": SHAREGPT},
    "text": {"text": "a b"},
}


@pytest.fixture
def subset(write_rows, file_source, tmp_path):
    """The folder of a subset of two rows and what `datasets` reads from it."""

    def make(rows):
        write_subset(RunFolder(tmp_path / "out"), file_source(write_rows(rows)).load(0), [0, 1], None)
        path = tmp_path / "out" / "subset.jsonl"
        return path.parent, load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "hf"))

    return make


@pytest.mark.parametrize("kind", ROWS)
def test_trl_sees_in_the_subset_what_it_saw_in_the_input(kind, subset):
    trl = pytest.importorskip("trl.data_utils", reason="TRL is not installed: pip install trl")
    _, read = subset([ROWS[kind]] * 3)
    assert read[0] == ROWS[kind]
    assert trl.is_conversational(read[0]) == kind.startswith("messages")
    assert trl.is_conversational_from_value(read[0]) == (kind == "sharegpt")
    assert trl.maybe_convert_to_chatml(read[0]) == trl.maybe_convert_to_chatml(copy.deepcopy(ROWS[kind]))


def llama_factory_columns(entry):
    """Where LLaMA-Factory 0.9.5 looks (`data/parser.py`): what `columns` and `tags` leave out is None.

    Its package cannot be installed beside this project's transformers, so its rules stand here.
    """
    names = ["prompt", "query", "response", "history", "messages", "system", "tools"]
    tags = ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"]
    assert set(entry) <= {"file_name", "formatting", "columns", "tags"} and entry["file_name"] == "subset.jsonl"
    assert set(entry["columns"]) <= set(names) and set(entry.get("tags", {})) <= set(tags)
    assert entry.get("formatting", "alpaca") in ("alpaca", "sharegpt")
    return {name: entry["columns"].get(name) for name in names}, {tag: entry.get("tags", {}).get(tag) for tag in tags}


def llama_factory_turns(entry, row):
    """A row as LLaMA-Factory aligns it (`data/converter.py`): system, prompt turns, response."""
    columns, tags = llama_factory_columns(entry)
    if entry.get("formatting", "alpaca") == "alpaca":
        query = [row[columns[name]] for name in ("prompt", "query") if columns[name] and row[columns[name]]]
        response = row[columns["response"]] if columns["response"] else None
        return (row[columns["system"]] if columns["system"] else ""), ["\n".join(query)], response
    messages = row[columns["messages"]]
    system = row[columns["system"]] if columns["system"] else ""
    if tags["system_tag"] and messages[0][tags["role_tag"]] == tags["system_tag"]:
        system, messages = messages[0][tags["content_tag"]], messages[1:]
    accepted = ((tags["user_tag"], tags["observation_tag"]), (tags["assistant_tag"], tags["function_tag"]))
    for describe_row, message in enumerate(messages):
        assert message[tags["role_tag"]] in accepted[describe_row % 2], "LLaMA-Factory would skip this row"
    texts = [message[tags["content_tag"]] for message in messages]
    return system, texts[:-1], texts[-1]


@pytest.mark.parametrize(
    ("kind", "turns"),
    [
        ("alpaca", ("", ["a\nc"], "b")),
        ("alpaca without input", ("", ["a"], "b")),
        ("pairs", ("", ["a"], "b")),
        ("messages", ("", ["a"], "b")),
        ("messages and system", ("s", ["a"], "b")),
        ("sharegpt", ("", ["a"], "b")),
        ("text", ("", ["a b"], None)),
    ],
)
def test_llama_factory_finds_prompt_and_response(kind, turns, subset):
    folder, read = subset([ROWS[kind]] * 3)
    entry = json.loads((folder / "dataset_info.json").read_text("utf-8"))[name_run(folder)]
    assert llama_factory_turns(entry, read[0]) == turns


@pytest.mark.parametrize("field", ["input", "system"])
def test_a_field_that_no_chosen_row_has_is_not_named(field, subset):
    """LLaMA-Factory would look for it in the subset and fail."""
    plain = ROWS["alpaca without input" if field == "input" else "messages"]
    folder, read = subset([plain, plain, {**plain, field: "x"}])
    entry = json.loads((folder / "dataset_info.json").read_text("utf-8"))[name_run(folder)]
    assert field not in read.column_names and field not in entry["columns"].values()
    assert llama_factory_turns(entry, read[0]) == ("", ["a"], "b")
