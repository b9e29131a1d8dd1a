"""`export.format=`: the subset as TRL, axolotl and LLaMA-Factory read it, whatever the rows were."""

import json

import pytest
from datasets import load_dataset

from gradfiltering.data.export import name_run, warn_of_export
from gradfiltering.data.training_formats import ExportSettings
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder
from tests.support.llama_factory import read_as_llama_factory, turns_for_llama_factory

ALPACA = {"instruction": "a", "input": "c", "output": "b", "tags": ["x"]}
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
MESSAGES, PAIRS = ExportSettings(format="messages"), ExportSettings(format="prompt_completion")
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONVERSATIONS = {
    "alpaca": (ALPACA, [{"role": "user", "content": "a\n\nc"}, ANSWER]),
    "history": (
        {**ALPACA, "input": "", "history": [["q", "r"]], "system": "s"},
        [SYSTEM, {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}, USER, ANSWER],
    ),
    "pairs": ({"prompt": "a", "completion": "b"}, [USER, ANSWER]),
    "messages": ({"messages": [USER, ANSWER], "system": "s"}, [SYSTEM, USER, ANSWER]),
    "sharegpt": ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [USER, ANSWER]),
}


@pytest.fixture
def export(write_rows, file_source, tmp_path):
    """Writes a subset of all rows; returns its folder, the rows of the exported file and the warnings."""

    def run(rows, settings):
        dataset = file_source(write_rows(rows)).load(0)
        folder = tmp_path / "runs" / "night 1"
        write_subset(RunFolder(folder), dataset, range(len(rows)), None, export=settings)
        exported_file = folder / f"subset_as_{settings.format}.jsonl"
        lines = exported_file.read_text("utf-8").splitlines() if exported_file.is_file() else []
        return folder, [json.loads(line) for line in lines], warn_of_export(dataset, range(len(rows)), settings)

    return run


def entry_of(folder):
    entries = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    assert list(entries) == ["runs_night-1"] == [name_run(folder)]
    return entries["runs_night-1"]


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_every_kind_of_row_becomes_messages(kind, export, tmp_path):
    row, messages = CONVERSATIONS[kind]
    folder, exported, warnings = export([row, row], MESSAGES)
    assert exported == [{"messages": messages}] * 2 and warnings == []
    assert [json.loads(line) for line in (folder / "subset.jsonl").read_text("utf-8").splitlines()] == [row, row]
    entry = entry_of(folder)
    assert entry["file_name"] == "subset_as_messages.jsonl"
    texts = [message["content"] for message in messages if message["role"] != "system"]
    system = "s" if messages[0] == SYSTEM else ""
    assert turns_for_llama_factory(folder, name_run(folder), tmp_path / "hf") == [(system, texts[:-1], texts[-1])] * 2


@pytest.mark.parametrize("settings", [MESSAGES, PAIRS])
@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_trl_renders_what_the_conversation_says(kind, settings, export, make_tokenizer, tmp_path):
    trl = pytest.importorskip("trl.data_utils", reason="TRL is not installed: pip install trl")
    row, messages = CONVERSATIONS[kind]
    folder, _, _ = export([row], settings)
    path = str(folder / f"subset_as_{settings.format}.jsonl")
    read = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "hf"))[0]
    is_single = len(messages) == 2
    assert trl.is_conversational(read) == (settings is MESSAGES or not is_single)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    rendered = trl.maybe_apply_chat_template(read, tokenizer)
    whole = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    if settings is MESSAGES:
        assert rendered == {"text": whole}
    elif is_single:
        assert rendered == {"prompt": messages[0]["content"], "completion": "b"}


def test_single_questions_become_texts_that_llama_factory_reads(export, tmp_path):
    folder, exported, warnings = export([ALPACA, {**ALPACA, "input": ""}], PAIRS)
    assert exported == [{"prompt": "a\n\nc", "completion": "b"}, {"prompt": "a", "completion": "b"}]
    turns = turns_for_llama_factory(folder, name_run(folder), tmp_path / "hf")
    assert turns == [("", ["a\n\nc"], "b"), ("", ["a"], "b")]
    assert warnings == []


def test_conversations_become_one_pair_for_each_answer_to_learn(export):
    talk = [
        SYSTEM,
        USER,
        {**ANSWER, "train": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    folder, exported, warnings = export([{"messages": talk}, {"messages": [USER, ANSWER, USER, ANSWER]}], PAIRS)
    assert [pair["completion"][0]["content"] for pair in exported] == ["d", "b", "b"]
    assert exported[0]["prompt"] == [SYSTEM, USER, ANSWER, {"role": "user", "content": "c"}]
    assert exported[1] == {"prompt": [USER], "completion": [ANSWER]}
    assert warnings == ["2 selected rows became 3 prompts with completions, one for each answer that is to be learnt"]
    assert json.loads((folder / "dataset_info.json").read_text("utf-8")) == {}, "LLaMA-Factory reads no such lists"


@pytest.mark.parametrize("settings", [ExportSettings(), MESSAGES])
def test_marks_of_turns_are_warned_of_with_a_count(settings, export):
    marked = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    _, exported, warnings = export([marked, marked, {"messages": [USER, ANSWER]}], settings)
    assert len(warnings) == 1 and warnings[0].startswith("2 of 3 selected rows mark what is not to be learnt")
    if exported:
        assert [message.get("train") for message in exported[0]["messages"]] == [None, False, None, True]
        assert "train" not in exported[2]["messages"][1]


def test_stretches_are_exported_as_axolotl_counts_them(export):
    details = [
        {"begin_offset": 0, "end_offset": 1, "train": False},
        {"begin_offset": 2, "end_offset": 3, "train": True},
        {"begin_offset": 4, "end_offset": 5, "train": False},
    ]
    talk = [USER, {"role": "assistant", "content": "abcdef", "train_detail": details}]
    _, exported, warnings = export([{"messages": talk}], MESSAGES)
    assert exported[0]["messages"][1]["train_detail"] == details and len(warnings) == 1
    warning = export([{"messages": talk}], PAIRS)[2][0]
    assert warning.startswith("1 of 1 selected rows mark") and warning.endswith(
        "export messages and train with axolotl"
    )


def test_tools_calls_and_reasoning_are_exported(export, tmp_path):
    answer = {**ANSWER, "thinking": "hm", "tool_calls": [CALL]}
    row = {"messages": [USER, answer, {"role": "tool", "content": "1"}, ANSWER], "tools": json.dumps([TOOL])}
    folder, exported, _ = export([row], MESSAGES)
    assert exported[0]["tools"] == [TOOL]
    assert exported[0]["messages"][1] == {**ANSWER, "reasoning_content": "hm", "tool_calls": [CALL]}
    assert entry_of(folder)["formatting"] == "openai"
    (converted,) = read_as_llama_factory(folder, name_run(folder), tmp_path / "hf")
    assert json.loads(converted["_tools"]) == [TOOL]
    assert [turn["role"] for turn in converted["_prompt"]] == ["user", "function", "observation"]
    assert json.loads(converted["_prompt"][1]["content"]) == [CALL["function"]]


def test_tools_that_are_never_called_reach_llama_factory_as_text(export, tmp_path):
    folder, _, _ = export([{"messages": [USER, ANSWER], "tools": [TOOL]}], MESSAGES)
    (converted,) = read_as_llama_factory(folder, name_run(folder), tmp_path / "hf")
    assert json.loads(converted["_tools"]) == [TOOL]
    assert [turn["content"] for turn in (*converted["_prompt"], *converted["_response"])] == ["a", "b"]


@pytest.mark.parametrize("export_format", ["native", "messages", "prompt_completion"])
@pytest.mark.parametrize("file_name", ["messages_200.jsonl", "mixed_300.jsonl"])
def test_llama_factory_reads_every_answer_of_real_chats(file_name, export_format, shared_data, file_source, tmp_path):
    dataset = file_source(shared_data / "chat" / file_name).load(0)
    folder, row_ids = tmp_path / "run", range(len(dataset.rows))
    write_subset(RunFolder(folder), dataset, row_ids, None, export=ExportSettings(format=export_format))
    dataset_names = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    turns = [
        row_turns for name in dataset_names for row_turns in turns_for_llama_factory(folder, name, tmp_path / "hf")
    ]
    answers = [dataset.schema.conversation(row_values).answers[-1].content for row_values in dataset.rows]
    assert all(prompt for _, prompt, _ in turns)
    assert sorted(answer for _, _, answer in turns) == sorted(answers)


def test_whole_texts_are_refused_and_among_others_counted(export, write_rows, file_source):
    with pytest.raises(UserError, match=r"whole texts .* cannot be exported as messages; give the format native"):
        MESSAGES.check(file_source(write_rows([{"text": "a b"}])).load(0).schema)
    _, exported, warnings = export([{"text": "a b"}, {"messages": [USER, ANSWER]}], MESSAGES)
    assert exported == [{"messages": [USER, ANSWER]}]
    assert warnings == [
        "1 of 2 selected rows have no question and answer and are not in the messages file; they are in subset.jsonl"
    ]


def test_a_new_run_clears_the_files_of_another_format(export):
    folder, _, _ = export([ALPACA], MESSAGES)
    (folder / "environment.json").write_text("{}")
    RunFolder(folder)._remove_earlier_outputs()
    assert [file.name for file in folder.iterdir()] == ["environment.json"]
