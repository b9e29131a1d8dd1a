"""What the toolkits write into conversations, and exactly which tokens of it are learnt."""

import json

import pytest

from gradfiltering.data.chat_encoding import STRETCHES_UNCLEAR, TURNS_UNCLEAR
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.schemas import EMPTY_RESPONSE, NOT_TRAINED
from gradfiltering.data.templates import Turn
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder

END = "</s>"
# Shows all that a chat template may: tools, reasoning, calls, names. A turn ends in the end of sequence.
RICH = (
    "{% if tools %}T:{{ tools | tojson }};{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}A:"
    "{% generation %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m.role }}{% if m.name %}({{ m.name }}){% endif %}:{{ m.content }};"
    "{% endif %}{% endfor %}"
)
POOR = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}:{{ m.content }};{% endif %}{% endfor %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def user(content, **fields):
    return {"role": "user", "content": content, **fields}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


TWO_TURNS = [user("One?"), assistant("right"), user("Two?"), assistant("wrong")]


def two_turns(first, second=()):
    return [user("One?"), assistant("right", **dict(first)), user("Two?"), assistant("wrong", **dict(second))]


@pytest.fixture
def encode(write_rows, file_source, cache):
    """Encodes rows written to a file."""

    def run(rows, tokenizer):
        dataset = file_source(write_rows(rows)).load(0)
        return dataset, Encoder(tokenizer, 512, cache).encode(dataset)

    return run


@pytest.fixture
def templated(make_tokenizer):
    def build(template):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        return tokenizer

    return build


def shown(examples, position, tokenizer):
    return tokenizer.decode(examples.table[position]["input_ids"])


def learnt(examples, position, tokenizer):
    row = examples.table[position]
    spans = row["supervised"]
    return [tokenizer.decode(row["input_ids"][a:b]) for a, b in zip(spans[::2], spans[1::2], strict=True)]


FLAGS = {
    "OpenAI's weight": ({"weight": 0}, {"weight": 1}),
    "axolotl's train": ({"train": False}, {"train": True}),
    "axolotl's training": ({"training": False}, {}),
    "a null flag is none": ({"training": False}, {"weight": None}),
    "the flag that forbids wins": ({"weight": 1, "train": False}, {}),
    "no stretch": ({"train_detail": []}, {}),
}


@pytest.mark.parametrize("template", [None, RICH])
@pytest.mark.parametrize("case", FLAGS)
def test_a_turn_marked_as_not_to_be_trained_on_is_shown_and_not_learnt(case, template, encode, templated):
    tokenizer = templated(template)
    _, marked = encode([{"messages": two_turns(*FLAGS[case])}], tokenizer)
    _, plain = encode([{"messages": TWO_TURNS}], tokenizer)
    assert learnt(marked, 0, tokenizer) == ["wrong" + END]
    assert learnt(plain, 0, tokenizer) == ["right" + END, "wrong" + END]
    assert marked.table[0]["input_ids"] == plain.table[0]["input_ids"], "the model must see the same conversation"


@pytest.mark.parametrize("template", [None, RICH])
def test_a_row_with_every_turn_marked_is_unscored_with_the_reason(template, encode, templated):
    rows = [{"messages": two_turns({"weight": 0}, {"weight": 0})}, {"messages": TWO_TURNS}]
    _, examples = encode(rows, templated(template))
    assert examples.unscored == [(0, NOT_TRAINED)] and examples.example_ids.tolist() == [1]


@pytest.mark.parametrize("template", [None, RICH])
def test_only_the_stretches_of_a_train_detail_are_learnt(template, encode, templated):
    """axolotl's offsets count characters, and the end is inclusive."""
    details = [
        {"begin_offset": 0, "end_offset": 3, "train": True},
        {"begin_offset": 4, "end_offset": 7, "train": False},
        {"begin_offset": 8, "end_offset": 99, "train": True},
    ]
    tokenizer = templated(template)
    talk = [user("One?"), assistant("abcdefghijkl", train_detail=details)]
    _, examples = encode([{"messages": talk}], tokenizer)
    assert learnt(examples, 0, tokenizer) == ["abcd", "ijkl" + END]
    assert "abcdefghijkl" in shown(examples, 0, tokenizer)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"weight": 0.5}, "weight 0.5 is neither 0 nor 1"),
        ({"train": "no"}, "train 'no' is neither 0 nor 1"),
        ({"train_detail": 3}, "train_detail 3 is not a list"),
        ({"train_detail": [{"train": True}]}, "no begin_offset and end_offset"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": 1}]}, "does not say whether to train"),
        ({"tool_calls": "add"}, "tool_calls 'add' is not a list"),
        ({"tool_calls": [{"id": "x"}]}, "names no function"),
        ({"function_call": 3}, "names no function"),
        ({"reasoning_content": 3}, "reasoning_content 3 is not text"),
        ({"role": "boss"}, "role 'boss' is unknown"),
    ],
)
def test_a_field_that_cannot_be_read_names_row_message_and_value(message, words, write_rows, file_source):
    path = write_rows([{"messages": TWO_TURNS}, {"messages": [user("One?"), {**assistant("b"), **message}]}])
    with pytest.raises(UserError, match=rf"line 2, row 1: column 'messages', message 1: .*{words}"):
        file_source(path).load(0)


CALLS = {
    "OpenAI's tool_calls with null content": assistant(None, tool_calls=[CALL]),
    "OpenAI's function_call": assistant(None, function_call=CALL["function"]),
    "arguments as an object": assistant("", tool_calls=[{"function": {"name": "add", "arguments": {"a": 1}}}]),
    "a call without a wrapper": assistant("", tool_calls=[{"name": "add", "arguments": {"a": 1}}]),
    "LLaMA-Factory's function_call role": {"role": "function_call", "content": json.dumps(CALL["function"])},
}


@pytest.mark.parametrize("case", CALLS)
def test_a_tool_call_is_learnt(case, encode, templated):
    talk = [user("One?"), CALLS[case], {"role": "tool", "content": "1"}, assistant("right")]
    plain, rich, poor = templated(None), templated(RICH), templated(POOR)
    _, examples = encode([{"messages": talk}], plain)
    assert learnt(examples, 0, plain) == [CALL_TEXT + END, "right" + END]
    assert shown(examples, 0, plain) == (
        f"<|user|>\nOne?\n<|assistant|>\n{CALL_TEXT}{END}<|tool|>\n1\n<|assistant|>\nright{END}"
    )
    _, examples = encode([{"messages": talk}], rich)
    assert learnt(examples, 0, rich) == ['[add {"a": 1}]' + END, "right" + END]
    _, examples = encode([{"messages": talk}], poor)
    assert learnt(examples, 0, poor) == [CALL_TEXT + END, "right" + END], "a template without calls gets them as text"
    assert examples.not_shown == {}


@pytest.mark.parametrize("role", ["observation", "tool_response", "function", "ipython", "tool"])
def test_results_of_tools_are_shown_and_not_learnt(role, encode, tokenizer):
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": role, "value": "7"}]
    _, examples = encode([{"conversations": [*talk, {"from": "gpt", "value": "c"}]}], tokenizer)
    assert learnt(examples, 0, tokenizer) == ["b" + END, "c" + END] and "<|tool|>\n7\n" in shown(examples, 0, tokenizer)


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_learnt_before_the_answer(field, encode, templated):
    talk = [user("One?"), assistant("right", **{field: "because"})]
    plain, rich, poor = templated(None), templated(RICH), templated(POOR)
    _, examples = encode([{"messages": talk}], plain)
    assert learnt(examples, 0, plain) == ["<think>\nbecause\n</think>\n\nright" + END] and examples.not_shown == {}
    _, examples = encode([{"messages": talk}], rich)
    assert learnt(examples, 0, rich) == ["<think>because</think>right" + END]
    _, examples = encode([{"messages": talk}, {"messages": TWO_TURNS}], poor)
    assert learnt(examples, 0, poor) == ["right" + END] and examples.not_shown == {"reasoning": 1}
    assert any("1 of 2 examples have reasoning that the template does not show" in text for text in examples.warnings())


@pytest.mark.parametrize(
    "columns", [{"tools": [TOOL]}, {"tools": json.dumps([TOOL])}, {"functions": [TOOL["function"]]}, {"tools": TOOL}]
)
def test_tools_are_shown_before_the_conversation(columns, encode, templated):
    rows, plain, rich, poor = [{"messages": TWO_TURNS, **columns}], templated(None), templated(RICH), templated(POOR)
    dataset, examples = encode(rows, plain)
    assert shown(examples, 0, plain).startswith(f"<|tools|>\n{json.dumps([TOOL])}\n<|user|>\n")
    assert dataset.contents.unused == {} and examples.not_shown == {}
    _, examples = encode(rows, rich)
    assert shown(examples, 0, rich).startswith(f"T:{json.dumps([TOOL])};user:One?") and examples.not_shown == {}
    _, examples = encode(rows, poor)
    assert examples.not_shown == {"tools": 1} and learnt(examples, 0, poor) == ["right" + END, "wrong" + END]


def test_template_arguments_of_a_row_reach_the_template(encode, templated):
    tokenizer = templated("{% if loud %}LOUD {% endif %}" + RICH)
    rows = [{"messages": TWO_TURNS, "chat_template_kwargs": arguments} for arguments in ({"loud": True}, {"calm": 1})]
    dataset, examples = encode([*rows, {"messages": TWO_TURNS, "chat_template_kwargs": {"tokenize": 1}}], tokenizer)
    assert [shown(examples, position, tokenizer)[:5] for position in range(3)] == ["LOUD ", "user:", "user:"]
    assert examples.not_shown == {"chat_template_kwargs calm": 1}
    assert dataset.contents.unused == {"chat_template_kwargs that a row cannot give": 1}


def test_a_developer_is_a_system_turn_and_names_reach_the_template(encode, templated):
    talk = [{"role": "developer", "content": "Be kind."}, user("One?", name="Ann"), assistant("right")]
    plain, rich = templated(None), templated(RICH)
    dataset, examples = encode([{"messages": talk}], plain)
    assert shown(examples, 0, plain).startswith("<|system|>\nBe kind.\n<|user|>\n")
    assert examples.not_shown == {"message field name": 1}
    assert dataset.schema.turn(dataset.rows[0]) == Turn("One?", "", "right", "Be kind.")
    _, examples = encode([{"messages": talk}], rich)
    assert shown(examples, 0, rich).startswith("system:Be kind.;user(Ann):One?;") and examples.not_shown == {}


@pytest.mark.parametrize("template", [None, RICH])
def test_of_prompt_and_completion_as_messages_the_completion_is_learnt(template, encode, templated):
    tokenizer = templated(template)
    rows = [
        {"prompt": TWO_TURNS[:3], "completion": TWO_TURNS[3:]},
        {"prompt": [user("One?")], "completion": "wrong"},
        {"prompt": "One?", "completion": [assistant("wrong")]},
    ]
    dataset, examples = encode(rows, tokenizer)
    assert dataset.schema.name == "prompt_completion"
    for position in range(3):
        assert learnt(examples, position, tokenizer)[-1].endswith("wrong" + END)
        assert "One?" in shown(examples, position, tokenizer)
    assert learnt(examples, 0, tokenizer) == ["wrong" + END] and "right" + END in shown(examples, 0, tokenizer)


def test_marks_that_do_not_tell_turns_apart_leave_a_masked_row_unscored(encode, templated):
    one_mark = "{% generation %}{% for m in messages %}{{ m.content }} {% endfor %}{% endgeneration %}"
    rows = [{"messages": two_turns({"weight": 0})}, {"messages": TWO_TURNS}]
    _, examples = encode(rows, templated(one_mark))
    assert examples.unscored == [(0, TURNS_UNCLEAR)]
    upper = POOR.replace("{{ m.content }}{{ eos_token }}", "{{ m.content | upper }}{{ eos_token }}")
    detail = [{"begin_offset": 0, "end_offset": 1, "train": True}]
    rows = [{"messages": two_turns({"train_detail": detail})}, {"messages": TWO_TURNS}]
    _, examples = encode(rows, templated(upper))
    assert examples.unscored == [(0, STRETCHES_UNCLEAR)] and examples.not_shown == {"the whole of an answer": 1}


ALPACA = {"instruction": "Two?", "input": "x", "output": "wrong"}


def test_system_and_history_of_alpaca_rows_are_used(encode, tokenizer):
    """As LLaMA-Factory: each earlier answer is learnt, the system turn stands before the first question."""
    row = {**ALPACA, "system": "Be kind.", "history": [["One?", "right"], ["Say", None]]}
    dataset, examples = encode([row, {**ALPACA, "system": None, "history": []}, ALPACA], tokenizer)
    assert shown(examples, 0, tokenizer) == f"Be kind.\nOne?\nright{END}Say\nTwo?\nx\nwrong{END}"
    assert learnt(examples, 0, tokenizer) == ["right" + END, "wrong" + END]
    assert examples.table[1]["input_ids"] == examples.table[2]["input_ids"]
    assert learnt(examples, 1, tokenizer) == ["wrong" + END]
    assert dataset.schema.turn(dataset.rows[0]) == Turn("One?", "", "right", "Be kind.")
    assert dataset.contents.unused == {}


@pytest.mark.parametrize("marked", [True, False])
def test_history_in_the_chat_template_is_one_conversation(marked, write_rows, file_source, cache, templated):
    template = RICH + "{% if add_generation_prompt %}A:{% endif %}"
    if not marked:
        template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer = templated(template)
    row = {**ALPACA, "system": "Be kind.", "history": [["One?", "right"]]}
    source = file_source(write_rows([row]))
    object.__setattr__(source, "template", "chat")
    examples = Encoder(tokenizer, 512, cache).encode(source.load(0))
    assert shown(examples, 0, tokenizer) == f"system:Be kind.;user:One?;A:right{END}user:Two?\n\nx;A:wrong{END}"
    assert learnt(examples, 0, tokenizer) == ["right" + END, "wrong" + END]


UNUSED = {
    "preference columns": ({**ALPACA, "chosen": "a", "rejected": "b"}, {"chosen": 1, "rejected": 1}),
    "a history of another form": ({**ALPACA, "history": "long"}, {"history that is no list of question and answer": 1}),
    "a system of another type": ({**ALPACA, "system": 3}, {"system that is no text": 1}),
    "two systems": (
        {"messages": [{"role": "system", "content": "a"}, *TWO_TURNS], "system": "b"},
        {"system column beside a system message": 1},
    ),
    "tools of another form": ({"messages": TWO_TURNS, "tools": "none"}, {"tools that are no list of tools": 1}),
    "flags of users": ({"messages": [user("a", train=True), assistant("b")]}, {"training flags of user messages": 1}),
    "calls of users": (
        {"messages": [user("a", tool_calls=[CALL]), assistant("b")]},
        {"tool calls of user messages": 1},
    ),
    "two system columns": (
        {"messages": TWO_TURNS, "system": "a", "system_prompt": "b"},
        {"system_prompt beside system": 1},
    ),
    "two system columns of an instruction": (
        {**ALPACA, "system": "a", "system_prompt": "b"},
        {"system_prompt beside system": 1},
    ),
    "content and value": (
        {"messages": [user("a", value="c"), assistant("b")]},
        {"message field value beside content": 1},
    ),
    "images": ({"messages": TWO_TURNS, "images": ["a.png"]}, {"images": 1}),
    "an empty column": ({**ALPACA, "chosen": None, "images": []}, {}),
}


@pytest.mark.parametrize("case", UNUSED)
def test_what_is_not_used_is_named_with_a_count_and_given_back(case, encode, tokenizer, tmp_path):
    row, unused = UNUSED[case]
    dataset, _ = encode([row], tokenizer)
    assert dataset.contents.unused == unused
    lines = "\n".join(dataset.contents.describe())
    assert all(f"{name} (1 rows)" in lines for name in unused)
    write_subset(RunFolder(tmp_path), dataset, [0], None)
    assert json.loads((tmp_path / "subset.jsonl").read_text("utf-8")) == row


def test_a_typed_table_with_nulls_for_absent_fields_reads_the_same(encode, tokenizer, tmp_path, file_source, cache):
    from datasets import Dataset

    talk = [user("One?"), assistant(None, tool_calls=[CALL]), {"role": "tool", "content": "1"}, assistant("right")]
    rows = [{"messages": talk, "tools": [TOOL]}, {"messages": TWO_TURNS, "tools": None}]
    _, from_text = encode(rows, tokenizer)
    Dataset.from_list([{**row, "tools": row["tools"] and json.dumps(row["tools"])} for row in rows]).to_parquet(
        str(tmp_path / "rows.parquet")
    )
    typed = file_source(tmp_path / "rows.parquet").load(0)
    from_typed = Encoder(tokenizer, 512, cache).encode(typed)
    assert from_typed.table["input_ids"][:] == from_text.table["input_ids"][:]
    assert from_typed.not_shown == from_text.not_shown


def test_empty_alpaca_answers_keep_their_reason(encode, tokenizer):
    rows = [{**ALPACA, "output": " ", "history": [["One?", ""]]}, ALPACA]
    _, examples = encode(rows, tokenizer)
    assert examples.unscored == [(0, EMPTY_RESPONSE)]
