"""Rows longer than a model reads: what is cut, what is left, the marks, the counts."""

from dataclasses import replace
from itertools import pairwise

import pytest
from tokenizers import AddedToken

from gradfiltering.data.encoder import Encoder, find_max_tokens
from gradfiltering.data.encoding import NO_RESPONSE_LEFT
from gradfiltering.data.row_cutting import CUT_MARK, shorten_text
from tests.data.test_chat_templates import CHATML, LLAMA2, LLAMA3, unmarked

MARK = CUT_MARK.strip()
LONG_QUESTION = "Start " + "0123456789 " * 60 + "end"
LONG_ANSWER = "First " + "abcdefghij " * 60 + "last"
HEAD = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TAIL = "\n\n### Response:\n"


@pytest.fixture
def chatty(make_tokenizer):
    """Builds a tokenizer with a chat template."""

    def build(template):
        tokenizer = make_tokenizer()
        names = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
        tokenizer.chat_template = template
        return tokenizer

    return build


@pytest.fixture
def encode(write_rows, file_source, cache):
    """Encodes rows of a file, cut to a length, and whole."""

    def run(rows, tokenizer, max_tokens, template="alpaca"):
        dataset = replace(file_source(write_rows(rows)), template=template).load(0)
        return (Encoder(tokenizer, length, cache).encode(dataset) for length in (max_tokens, 100_000))

    return run


def parts_of(examples, tokenizer, position=0):
    """The texts that are not learnt, and those that are."""
    row = examples.table[position]
    bounds = [0, *row["supervised"], len(row["input_ids"])]
    texts = [tokenizer.decode(row["input_ids"][a:b]) for a, b in pairwise(bounds)]
    return texts[::2], texts[1::2]


def check_counts(cut, whole):
    assert cut.lengths.max() <= cut.max_tokens and cut.truncated == 1
    lost_tokens = whole.tokens - cut.tokens
    assert cut.lost_tokens == lost_tokens == cut.summary(1)["truncated"]["tokens"] > 0
    assert whole.truncated == whole.lost_tokens == 0


def test_a_long_question_loses_its_middle_with_a_mark_and_the_template_stays(encode, tokenizer):
    cut, whole = encode([{"instruction": LONG_QUESTION, "output": "right"}], tokenizer, 300)
    (prompt, _), (answer,) = parts_of(cut, tokenizer)
    assert prompt.startswith(HEAD + "\n\n### Instruction:\nStart 0123") and prompt.endswith("789 end" + TAIL)
    assert prompt.count(MARK) == 1 and answer == "right</s>"
    head, tail = prompt.removeprefix(HEAD + "\n\n### Instruction:\n").removesuffix(TAIL).split(CUT_MARK)
    assert LONG_QUESTION.startswith(head) and LONG_QUESTION.endswith(tail) and abs(len(head) - len(tail)) <= 1
    assert cut.lengths[0] > 290, "no more is cut than has to be"
    check_counts(cut, whole)


def test_of_instruction_and_input_the_longer_gives_way(encode, tokenizer):
    cut, whole = encode([{"instruction": "Sum it up.", "input": LONG_QUESTION, "output": "right"}], tokenizer, 400)
    (prompt, _), (answer,) = parts_of(cut, tokenizer)
    assert "### Instruction:\nSum it up.\n\n### Input:\nStart 0" in prompt and prompt.endswith("end" + TAIL)
    assert prompt.count(MARK) == 1 and answer == "right</s>"
    check_counts(cut, whole)


def test_a_long_answer_loses_its_end_and_is_not_closed(encode, tokenizer):
    cut, whole = encode([{"instruction": "Write.", "output": LONG_ANSWER}], tokenizer, 300)
    (prompt, rest), (answer,) = parts_of(cut, tokenizer)
    assert prompt == f"{HEAD}\n\n### Instruction:\nWrite.{TAIL}" and rest == ""
    assert LONG_ANSWER.startswith(answer) and MARK not in answer and cut.lengths.tolist() == [300]
    check_counts(cut, whole)


def test_of_long_question_and_answer_the_question_keeps_a_quarter(encode, tokenizer):
    cut, whole = encode([{"instruction": LONG_QUESTION, "output": LONG_ANSWER}], tokenizer, 400)
    (prompt, _), (answer,) = parts_of(cut, tokenizer)
    question = prompt.removeprefix(HEAD + "\n\n### Instruction:\n").removesuffix(TAIL)
    assert question.startswith("Start") and question.endswith("end") and question.count(MARK) == 1
    assert 90 <= len(tokenizer(question)["input_ids"]) <= 100
    assert LONG_ANSWER.startswith(answer) and len(answer) > 50 and cut.lengths.tolist() == [400]
    check_counts(cut, whole)


def long_talk(first="One?", second="Two?"):
    return [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": first},
        {"role": "assistant", "content": "right"}, {"role": "user", "content": second},
        {"role": "assistant", "content": "wrong"}, {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": LONG_ANSWER}, {"role": "user", "content": "Four?"},
        {"role": "assistant", "content": "never"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA3, LLAMA2, unmarked(CHATML)], ids=["chatml", "llama3", "llama2", "own"]
)
def test_a_long_conversation_ends_in_the_answer_that_does_not_fit(template, encode, chatty):
    tokenizer = chatty(template)
    cut, whole = encode([{"messages": long_talk()}], tokenizer, 300, "conversation")
    (*prompts, rest), answers = parts_of(cut, tokenizer)
    whole_prompts, _ = parts_of(whole, tokenizer)
    assert prompts == whole_prompts[:3], "what stands before the long answer is as it was"
    assert len(answers) == 3 and answers[0].startswith("right") and LONG_ANSWER.startswith(answers[2].strip())
    assert rest == "" and cut.lengths.tolist() == [300]
    check_counts(cut, whole)


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA3, LLAMA2, unmarked(CHATML)], ids=["chatml", "llama3", "llama2", "own"]
)
def test_a_long_question_in_a_conversation_is_marked_and_its_answer_whole(template, encode, chatty):
    tokenizer = chatty(template)
    cut, whole = encode([{"messages": long_talk(second=LONG_QUESTION)[:5]}], tokenizer, 350, "conversation")
    prompts, answers = parts_of(cut, tokenizer)
    whole_prompts, whole_answers = parts_of(whole, tokenizer)
    assert answers == whole_answers and prompts[0] == whole_prompts[0]
    head, tail = prompts[1].split(CUT_MARK)
    assert whole_prompts[1].startswith(head) and whole_prompts[1].endswith(tail) and "Start" in head and "end" in tail
    check_counts(cut, whole)


def test_an_answer_that_is_not_learnt_gives_way_like_a_question(encode, chatty):
    tokenizer = chatty(CHATML)
    talk = [
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": LONG_QUESTION, "weight": 0},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "right"},
    ]  # fmt: skip
    cut, whole = encode([{"messages": talk}], tokenizer, 300, "conversation")
    prompts, answers = parts_of(cut, tokenizer)
    assert answers == ["right<|im_end|>"] and prompts[0].count(MARK) == 1 and "Two?" in prompts[0]
    check_counts(cut, whole)


def test_of_many_long_messages_before_an_answer_all_keep_something(encode, chatty):
    tokenizer = chatty(CHATML)
    talk = [{"role": "user", "content": f"{n} {LONG_QUESTION}"} for n in range(6)]
    cut, whole = encode(
        [{"messages": [*talk, {"role": "assistant", "content": "right"}]}], tokenizer, 600, "conversation"
    )
    (prompt, _), (answer,) = parts_of(cut, tokenizer)
    assert prompt.count(MARK) == 6 and answer == "right<|im_end|>"
    assert prompt.count("<|im_start|>user\n") == 6 and prompt.count("end<|im_end|>\n") == 6
    check_counts(cut, whole)


def test_a_template_longer_than_the_context_leaves_the_row_unscored(encode, tokenizer):
    rows = [{"instruction": "Write.", "output": "right"}, {"instruction": "W", "output": "r", "system": "Be."}]
    cut, _ = encode(rows, tokenizer, 60)
    assert cut.unscored == [(0, NO_RESPONSE_LEFT)] and cut.example_ids.tolist() == [1] and cut.truncated == 0


def test_a_whole_text_loses_its_end(encode, tokenizer):
    cut, whole = encode([{"text": LONG_ANSWER}], tokenizer, 100)
    assert whole.table[0]["input_ids"][:100] == cut.table[0]["input_ids"]
    check_counts(cut, whole)


def test_shortening_leaves_both_ends_around_the_mark():
    assert shorten_text("abcdefghij", 0.5) == "abc [...] ij"
    assert shorten_text("\u4e2d\u6587\u5b57\u7b26", 0.5) == "\u4e2d [...] \u7b26"
    assert shorten_text("abc", 0) == shorten_text("abc", -1) == CUT_MARK


def test_the_length_follows_the_context_and_the_99th_percentile(make_records, tokenizer, cache):
    short, long = ("Q", "", "a"), ("Q", "", "a" * 60)
    few = make_records([short] * 20 + [long])
    assert find_max_tokens(Encoder(tokenizer, 512, cache), few) == 512, "of a few rows none is an outlier"
    many = make_records([short] * 300 + [long])
    assert (
        find_max_tokens(Encoder(tokenizer, 512, cache), many)
        == Encoder(tokenizer, 512, cache).encode(many).lengths.min()
    )
    assert find_max_tokens(Encoder(tokenizer, 30, cache), few) == 30


@pytest.mark.parametrize("template", [CHATML, LLAMA2, unmarked(CHATML)], ids=["chatml", "llama2", "unmarked"])
def test_a_long_input_under_a_chat_template_is_marked(template, encode, chatty):
    tokenizer = chatty(template)
    rows = [{"instruction": "Sum it up.", "input": LONG_QUESTION, "output": "right"}]
    cut, whole = encode(rows, tokenizer, 300, "chat")
    prompts, answers = parts_of(cut, tokenizer)
    whole_prompts, whole_answers = parts_of(whole, tokenizer)
    head, tail = prompts[0].split(CUT_MARK)
    assert whole_prompts[0].startswith(head) and whole_prompts[0].endswith(tail) and answers == whole_answers
    assert "Sum it up.\n\nStart" in head and "end" in tail
    check_counts(cut, whole)
