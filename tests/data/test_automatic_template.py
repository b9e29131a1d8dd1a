"""`data.template=auto`: the model's own chat template where it has one, else a layout of ours."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tokenizers import AddedToken

from gradfiltering.data.encoder import Encoder, describe_template
from tests.data.test_chat_templates import CHATML, LLAMA2, LLAMA3, TALK, TEXT_ONLY, unmarked

QUESTION = {"instruction": "One?", "input": "", "output": "right"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.thinking %}{{ '(' + m.thinking + ')' }}"
    "{% endif %}{{ m.content }}{% for call in m.tool_calls or [] %}{{ '!' + call.function.name }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REWRITING = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' and not loop.last %}{{ '...' }}{% else %}"
    "{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture
def encode(make_tokenizer, write_rows, file_source, cache):
    """Encodes rows by the automatic template under a tokenizer with a chat template; pieces are (text, learnt)."""

    def run(rows, chat_template, max_tokens=512):
        tokenizer = make_tokenizer()
        marks = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_tokens([AddedToken(mark, special=True) for mark in marks])
        tokenizer.chat_template = chat_template
        dataset = replace(file_source(write_rows(rows)), template="auto").load(0)
        examples = Encoder(tokenizer, max_tokens, cache).encode(dataset)
        pieces = []
        for row in examples.table:
            bounds = [0, *row["supervised"], len(row["input_ids"])]
            texts = [tokenizer.decode(row["input_ids"][start:stop]) for start, stop in pairwise(bounds)]
            pieces.append([(text, index % 2 == 1) for index, text in enumerate(texts) if text])
        return dataset, tokenizer, examples, pieces

    return run


@pytest.mark.parametrize(
    ("row", "without", "with_chat_template"),
    [
        (QUESTION, "alpaca", "chat (the model's own)"),
        ({"prompt": "One?", "completion": "right"}, "alpaca", "chat (the model's own)"),
        (
            {"messages": TALK},
            "roles (a plain layout; the model has no chat template for them)",
            "chat (the model's own)",
        ),
        ({"text": "a b"}, "verbatim", "verbatim"),
    ],
)
def test_the_chat_template_is_taken_where_there_is_one(row, without, with_chat_template, encode):
    for chat_template, words in ((None, without), (unmarked(CHATML), with_chat_template), (CHATML, with_chat_template)):
        dataset, tokenizer, _, _ = encode([row], chat_template)
        assert describe_template(dataset, tokenizer) == words


def test_questions_take_alpaca_or_the_chat_template(encode):
    alpaca = encode([QUESTION], None)[3][0]
    assert alpaca == [
        (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nOne?\n\n### Response:\n",
            False,
        ),
        ("right</s>", True),
    ]
    chat = encode([QUESTION], CHATML)[3][0]
    assert chat == [("<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n", False), ("right<|im_end|>", True)]


def test_a_whole_text_still_ends_in_the_end_of_sequence(encode):
    assert encode([{"text": "a b"}], CHATML)[3] == [[("a", False), (" b</s>", True)]]


@pytest.mark.parametrize(
    ("chat_template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (TEXT_ONLY, "</s>")]
)
def test_a_conversation_needs_no_marks_in_the_template(chat_template, end, encode):
    _, _, marked, marked_pieces = encode([{"messages": TALK}], chat_template)
    _, _, unmarked_examples, pieces = encode([{"messages": TALK}], unmarked(chat_template))
    assert [text for text, is_learnt in pieces[0] if is_learnt] == [f"right{end}", f"wrong{end}"]
    whole_row = "".join(text for text, _ in marked_pieces[0])
    assert whole_row.startswith("".join(text for text, _ in pieces[0])), "only what follows the last answer may lack"
    assert unmarked_examples.not_shown == {} and len(marked) == 1


def test_an_answer_after_a_blank_of_the_template_is_learnt_with_it(encode):
    pieces = encode([{"messages": TALK}], unmarked(LLAMA2))[3][0]
    assert [text for text, is_learnt in pieces if is_learnt] == [" right </s>", " wrong </s>"]


def test_a_turn_that_is_not_to_be_learnt_is_shown_only(encode):
    turns = [TALK[1], {**TALK[2], "train": False}, *TALK[3:]]
    pieces = encode([{"messages": turns}], unmarked(CHATML))[3][0]
    assert [text for text, is_learnt in pieces if is_learnt] == ["wrong<|im_end|>"]
    assert "right<|im_end|>" in pieces[0][0]


def test_stretches_of_an_answer_are_learnt_apart(encode):
    details = [
        {"begin_offset": 0, "end_offset": 1, "train": False},
        {"begin_offset": 2, "end_offset": 4, "train": True},
    ]
    turns = [TALK[1], {**TALK[2], "train_detail": details}]
    pieces = encode([{"messages": turns}], unmarked(CHATML))[3][0]
    assert pieces[-1] == ("ght<|im_end|>", True) and pieces[0][0].endswith("assistant\nri")


def test_reasoning_and_calls_that_the_template_writes_are_learnt(encode):
    answer = {"role": "assistant", "content": "right", "reasoning_content": "hm", "tool_calls": [CALL]}
    _, _, examples, pieces = encode([{"messages": [TALK[1], answer]}], CALLING)
    assert pieces[0][1] == ("(hm)right!f<|im_end|>", True) and examples.not_shown == {}


def test_what_the_template_leaves_out_is_counted(encode):
    answer = {"role": "assistant", "content": "right", "reasoning_content": "hm"}
    _, _, examples, _ = encode([{"messages": [TALK[1], answer], "tools": [CALL]}], unmarked(CHATML))
    assert examples.not_shown == {"reasoning": 1, "tools": 1}


def test_a_conversation_may_begin_with_an_answer_and_end_with_a_question(encode):
    pieces = encode([{"messages": [TALK[2], TALK[1], TALK[4], TALK[3]]}], unmarked(CHATML))[3][0]
    assert [text for text, is_learnt in pieces if is_learnt] == ["right<|im_end|>", "wrong<|im_end|>"]
    assert pieces[0][0] == "<|im_start|>assistant\n" and "Two?" in pieces[-1][0]


def test_a_template_that_rewrites_earlier_answers_is_refused_with_the_reason(encode):
    _, _, examples, _ = encode([{"messages": TALK}, {"messages": TALK[:3]}], REWRITING)
    assert examples.example_ids.tolist() == [1]
    assert examples.unscored == [(0, "the tokenizer's chat template refuses it: it leaves out or rewrites an answer")]


def test_questions_beside_conversations_share_the_chat_template(encode):
    pieces = encode([QUESTION, {"messages": TALK[1:3]}], unmarked(CHATML))[3]
    assert pieces[0] == pieces[1] == [
        ("<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n", False), ("right<|im_end|>", True),
    ]  # fmt: skip


def test_a_long_question_loses_its_middle_and_never_the_template(encode):
    talk = [*TALK[1:3], {"role": "user", "content": "Two? " * 200}, TALK[4]]
    pieces = encode([{"messages": talk}], unmarked(CHATML), max_tokens=300)[3][0]
    whole_text = "".join(text for text, _ in pieces)
    assert whole_text.count("<|im_start|>user\n") == whole_text.count("<|im_start|>assistant\n") == 2
    assert "[...]" in pieces[2][0] and pieces[2][0].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert [text for text, is_learnt in pieces if is_learnt] == ["right<|im_end|>", "wrong<|im_end|>"]
