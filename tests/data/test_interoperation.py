"""What other trainers make of `subset.jsonl` and `dataset_info.json`."""

import copy
import json

import pytest
from datasets import load_dataset

from gradfiltering.data.export import name_run
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder
from tests.data.test_preference_schema import FORMS
from tests.support.llama_factory import read_as_llama_factory, turns_for_llama_factory

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


@pytest.mark.parametrize(
    ("kind", "turns"),
    [
        ("alpaca", ("", ["a\nc"], "b")),
        ("alpaca without input", ("", ["a"], "b")),
        ("pairs", ("", ["a"], "b")),
        ("messages", ("", ["a"], "b")),
        ("messages and system", ("s", ["a"], "b")),
        ("sharegpt", ("", ["a"], "b")),
        ("text", ("", ["a b"], "")),
    ],
)
def test_llama_factory_finds_prompt_and_response(kind, turns, subset, tmp_path):
    folder, _ = subset([ROWS[kind]] * 3)
    assert turns_for_llama_factory(folder, name_run(folder), tmp_path / "hf") == [turns] * 2


@pytest.mark.parametrize("field", ["input", "system"])
def test_a_field_that_no_chosen_row_has_is_not_named(field, subset, tmp_path):
    """LLaMA-Factory would look for it in the subset and fail."""
    plain = ROWS["alpaca without input" if field == "input" else "messages"]
    folder, read = subset([plain, plain, {**plain, field: "x"}])
    entry = json.loads((folder / "dataset_info.json").read_text("utf-8"))[name_run(folder)]
    assert field not in read.column_names and field not in entry["columns"].values()
    assert turns_for_llama_factory(folder, name_run(folder), tmp_path / "hf") == [("", ["a"], "b")] * 2


PREFERENCES = {
    **FORMS,
    "sharegpt with roles": {
        "conversations": [{"role": "user", "content": "Say it."}],
        "chosen": {"role": "assistant", "content": "right"}, "rejected": {"role": "assistant", "content": "wrong"},
    },
}  # fmt: skip


@pytest.mark.parametrize("form", PREFERENCES)
def test_llama_factory_reads_both_answers_of_a_preference(form, write_rows, file_source, tmp_path):
    row = PREFERENCES[form]
    dataset = file_source(write_rows([row] * 2), schema="preference").load(0)
    write_subset(RunFolder(tmp_path / "out"), dataset, [0, 1], None)
    if isinstance(row["chosen"], list):
        assert json.loads((tmp_path / "out" / "dataset_info.json").read_text("utf-8")) == {}, "it reads no such lists"
        return
    converted_rows = read_as_llama_factory(tmp_path / "out", name_run(tmp_path / "out"), tmp_path / "hf")
    assert len(converted_rows) == 2
    for converted in converted_rows:
        assert [turn["content"] for turn in converted["_prompt"]] == ["Say it."]
        assert [turn["content"] for turn in converted["_response"]] == ["right", "wrong"]
