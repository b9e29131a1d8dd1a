"""Preference rows in the forms that TRL and LLaMA-Factory write, as two sequences each."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.data.batches import IGNORED, LengthBatches, PreferenceBatch
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import hash_examples
from gradfiltering.data.preference_schema import (
    EQUAL_ANSWERS,
    EQUAL_WITHIN_LENGTH,
    NO_CHOSEN,
    NO_REJECTED,
)
from gradfiltering.data.training_formats import ExportSettings
from gradfiltering.errors import UserError

USER = {"role": "user", "content": "Say it."}
RIGHT, WRONG = ({"role": "assistant", "content": text} for text in ("right", "wrong"))
FORMS = {
    "TRL, texts": {"prompt": "Say it.", "chosen": "right", "rejected": "wrong"},
    "TRL, messages": {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
    "TRL, implicit prompt": {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
    "UltraFeedback": {
        "prompt": "Say it.", "prompt_id": "x", "chosen": [USER, RIGHT], "rejected": [USER, WRONG],
        "messages": [USER, RIGHT], "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "text prompt, answers as messages": {"prompt": "Say it.", "chosen": [RIGHT], "rejected": [WRONG]},
    "LLaMA-Factory, alpaca": {"instruction": "Say it.", "input": "", "chosen": "right", "rejected": "wrong"},
    "LLaMA-Factory, sharegpt": {
        "conversations": [{"from": "human", "value": "Say it."}],
        "chosen": {"from": "gpt", "value": "right"}, "rejected": {"from": "gpt", "value": "wrong"},
    },
}  # fmt: skip


@pytest.fixture
def encode(write_rows, file_source, cache):
    def run(rows, tokenizer, max_tokens=512, template="plain"):
        dataset = replace(file_source(write_rows(rows), schema="preference").load(0), template=template)
        return dataset, Encoder(tokenizer, max_tokens, cache).encode(dataset)

    return run


def read_sides(examples, position, tokenizer):
    """Prompt and learnt text of both sequences of a row."""
    row = examples.table[position]
    sides = []
    for ids, spans in ((row["input_ids"], row["supervised"]), (row["rejected_ids"], row["rejected_supervised"])):
        assert len(spans) == 2 and spans[1] == len(ids)
        sides.append((tokenizer.decode(ids[: spans[0]]), tokenizer.decode(ids[spans[0] :])))
    return sides


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_one_prompt_with_two_answers(encode, tokenizer, form):
    dataset, examples = encode([FORMS[form], FORMS[form]], tokenizer, template="conversation")
    (chosen_prompt, chosen), (rejected_prompt, rejected) = read_sides(examples, 0, tokenizer)
    assert chosen_prompt == rejected_prompt and chosen_prompt.count("Say it.") == 1
    assert (chosen, rejected) == ("right</s>", "wrong</s>")
    assert dataset.schema.turn(FORMS[form]).output == "right"
    assert dataset.schema.turn(FORMS[form]).question == "Say it."
    assert dataset.schema.unused(FORMS[form]) == []


def test_a_history_and_a_system_turn_stand_in_both_sequences(encode, tokenizer):
    earlier = [USER, RIGHT, {"role": "user", "content": "Name one."}]
    row = {"system": "Be kind.", "chosen": [*earlier, RIGHT], "rejected": [*earlier, WRONG]}
    _, examples = encode([row], tokenizer, template="conversation")
    (chosen_prompt, chosen), (rejected_prompt, rejected) = read_sides(examples, 0, tokenizer)
    assert chosen_prompt == rejected_prompt
    assert all(text in chosen_prompt for text in ("Be kind.", "Say it.", "right", "Name one."))
    assert (chosen, rejected) == ("right</s>", "wrong</s>")


def test_an_input_stands_before_answers_that_are_messages(encode, tokenizer):
    row = {"instruction": "Say it", "input": "in French.", "chosen": [RIGHT], "rejected": [WRONG]}
    dataset, examples = encode([row], tokenizer, template="conversation")
    (chosen_prompt, chosen), (rejected_prompt, rejected) = read_sides(examples, 0, tokenizer)
    assert chosen_prompt == rejected_prompt and "Say it" in chosen_prompt and "in French." in chosen_prompt
    assert (chosen, rejected) == ("right</s>", "wrong</s>") and dataset.schema.unused(row) == []


@pytest.mark.parametrize(
    ("further", "unused"),
    [
        ({}, []),
        ({"prompt": "Say it."}, []),
        ({"prompt": "Say more."}, ["prompt beside another prompt"]),
        ({"instruction": "Say", "input": "it."}, ["instruction beside another prompt", "input beside another prompt"]),
        ({"messages": [USER]}, []),
    ],
)
def test_a_prompt_beside_the_one_that_is_read_is_named(encode, tokenizer, further, unused):
    rows = [{**further, "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}]
    dataset, _ = encode([*rows, {"prompt": "a", "chosen": "b", "rejected": "c"}], tokenizer, template="conversation")
    assert dataset.schema.unused(rows[0]) == unused


def test_rows_that_teach_no_preference_are_listed(encode, tokenizer):
    prompt = {"prompt": "Say it."}
    rows = [
        {**prompt, "chosen": "right", "rejected": "wrong"},
        {**prompt, "chosen": "right", "rejected": "right "},
        {**prompt, "chosen": "", "rejected": "wrong"},
        {**prompt, "chosen": "right", "rejected": None},
        {"chosen": [USER, RIGHT], "rejected": [USER, RIGHT]},
    ]
    _, examples = encode(rows, tokenizer)
    assert examples.example_ids.tolist() == [0]
    assert examples.unscored == [(1, EQUAL_ANSWERS), (2, NO_CHOSEN), (3, NO_REJECTED), (4, EQUAL_ANSWERS)]


def test_answers_that_differ_only_beyond_the_cut_are_listed(encode, tokenizer):
    rows = [
        {"prompt": "Say it.", "chosen": "right" * 9 + "a", "rejected": "right" * 9 + "b"},
        {"prompt": "Say it.", "chosen": "right", "rejected": "wrong"},
    ]
    _, examples = encode(rows, tokenizer, max_tokens=10)
    assert examples.unscored == [(0, EQUAL_WITHIN_LENGTH)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "right", "rejected": "wrong"}, "it has no prompt"),
        ({"prompt": "Say it.", "chosen": 3, "rejected": "wrong"}, "column 'chosen' holds 3, neither text nor messages"),
        ({"prompt": "Say it.", "chosen": [{"role": "x"}], "rejected": "wrong"}, "role 'x' is unknown"),
    ],
)
def test_rows_of_no_form_are_refused(encode, tokenizer, row, message):
    with pytest.raises(UserError, match=message):
        encode([row], tokenizer)


def test_a_missing_column_of_answers_is_named(encode, tokenizer):
    with pytest.raises(UserError, match="no column 'rejected'"):
        encode([{"prompt": "Say it.", "chosen": "right"}], tokenizer)


def test_preference_rows_without_the_objective_are_led_to_it(write_rows, file_source):
    with pytest.raises(UserError, match="an objective that learns preferences, such as dpo"):
        file_source(write_rows([{"question_id": 1, "chosen": "right", "rejected": "wrong"}])).load(0)


def test_counts_are_of_both_sequences_and_widths_of_the_longer(encode, tokenizer):
    rows = [FORMS["TRL, texts"], {"prompt": "Say it.", "chosen": "right", "rejected": "wrong " * 8}]
    _, examples = encode(rows, tokenizer)
    table = examples.table
    lengths = [[len(row["input_ids"]), len(row["rejected_ids"])] for row in table]
    assert examples.sequence_lengths.tolist() == lengths
    assert examples.lengths.tolist() == [sum(pair) for pair in lengths]
    assert examples.widths.tolist() == [max(pair) for pair in lengths]
    sequences = examples.sequences()
    assert sequences.lengths.tolist() == [pair[side] for side in (0, 1) for pair in lengths]
    positions = examples.sequence_positions(np.array([1, 0]))
    assert [sequences.table[int(position)]["input_ids"] for position in positions] == [
        table[1]["input_ids"], table[1]["rejected_ids"], table[0]["input_ids"], table[0]["rejected_ids"],
    ]  # fmt: skip
    chosen = examples.select([1]).chosen_sequences()
    assert chosen.table[0]["input_ids"] == table[1]["input_ids"] and chosen.example_ids.tolist() == [1]
    assert examples.response_tokens.sum() == sequences.response_tokens.sum()


def test_the_digest_of_examples_sees_the_rejected_answers(encode, tokenizer):
    _, examples = encode([FORMS["TRL, texts"]], tokenizer)
    _, others = encode([{**FORMS["TRL, texts"], "rejected": "wrongly"}], tokenizer)
    assert hash_examples(examples) != hash_examples(others)


def test_batches_hold_both_sequences_of_like_rows(encode, tokenizer):
    rows = [{"prompt": "Say it.", "chosen": "right " * n, "rejected": "wrong"} for n in (9, 1, 5)]
    _, examples = encode(rows, tokenizer)
    examples = replace(examples, reference_nll=np.array([[1.0, 2], [3, 4], [5, 6]]))
    batches = LengthBatches(examples, 4 * int(np.sort(examples.widths)[1]), pad_id=0)
    shapes = [tuple(batches[index].input_ids.shape) for index in range(len(batches))]
    assert [shape[:2] for shape in shapes] == [(2, 2), (1, 2)] and shapes[1][2] == examples.widths.max()
    batch = batches[0]
    assert isinstance(batch, PreferenceBatch) and batch.example_id.tolist() == [1, 2]
    assert batch.reference_nll.tolist() == [[3, 4], [5, 6]]
    assert batch.lengths.tolist() == examples.widths[[1, 2]].tolist()
    row = examples.table[1]
    labels = [side[side != IGNORED].tolist() for side in batch.labels[0]]
    rejected = row["rejected_ids"][slice(*row["rejected_supervised"])]
    assert labels == [row["input_ids"][slice(*row["supervised"])], rejected]


def test_one_answer_of_two_is_not_exported(encode, tokenizer):
    dataset, _ = encode([FORMS["TRL, texts"]], tokenizer)
    with pytest.raises(UserError, match="give the format native"):
        ExportSettings(format="messages").check(dataset.schema)
    ExportSettings().check(dataset.schema)


def test_labels_of_people_become_preference_rows(encode, tokenizer, shared_data):
    pairs = json.loads((shared_data / "human" / "pandalm_testset_v1.json").read_text("utf-8"))[:200]
    rows = []
    for pair in pairs:
        votes = [pair[name] for name in sorted(pair) if name.startswith("annotator")]
        first, second = (sum(str(vote) == side for vote in votes) for side in "12")
        if first != second:
            answers = [str(pair["response1"]), str(pair["response2"])]
            chosen, rejected = answers if first > second else answers[::-1]
            question = {"instruction": pair["instruction"], "input": pair["input"]}
            rows.append({**question, "chosen": chosen, "rejected": rejected})
    _, examples = encode(rows, tokenizer, max_tokens=2000, template="alpaca")
    assert len(rows) > 100 and len(examples) + len(examples.unscored) == len(rows)
    assert {reason for _, reason in examples.unscored} <= {EQUAL_ANSWERS, NO_CHOSEN, NO_REJECTED}
    (prompt, chosen), (_, rejected) = read_sides(examples, 0, tokenizer)
    row = rows[int(examples.example_ids[0])]
    assert row["instruction"] in prompt and (chosen, rejected) == (row["chosen"] + "</s>", row["rejected"] + "</s>")
