"""Chat templates as models ship them: where a response ends, in training and in generation."""

from dataclasses import replace

import pytest
from tokenizers import AddedToken

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.templates import Turn, closing_token, end_of_turn, find_template, stop_tokens

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same, but everything up to the line break after the turn is marked as the assistant's.
CHATML_WIDE = CHATML.replace(
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' + '\n' }}",
    "{{ '<|im_end|>' + '\n' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' + '\n' }}{% endif %}",
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The system turn stands inside the first question.
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' }}{% generation %}{{ m.content }}{% endgeneration %}{{ ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEXT_ONLY = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
MARKED = {
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>"), "chatml_wide": (CHATML_WIDE, "<|im_end|>", "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>", "<|eot_id|>"), "llama2": (LLAMA2, "</s>", " </s>"),
    "text_only": (TEXT_ONLY, None, "</s>"),
}  # fmt: skip
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "right"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "wrong"},
]


def unmarked(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture
def chatty(make_tokenizer):
    """Builds a tokenizer with a chat template and the tokens it writes."""

    def build(template: str):
        tokenizer = make_tokenizer()
        marks = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        tokenizer.add_tokens([AddedToken("    ", special=False)])  # as GPT-NeoX has them
        tokenizer.chat_template = template
        return tokenizer

    return build


@pytest.fixture
def encode(write_rows, file_source, cache):
    def run(rows, tokenizer, template="plain"):
        records = replace(file_source(write_rows(rows)), template=template).load(0)
        return records, Encoder(tokenizer, 512, cache).encode(records)

    return run


def learnt(row, tokenizer):
    spans = row["supervised"]
    return [row["input_ids"][a:b] for a, b in zip(spans[::2], spans[1::2], strict=True)]


@pytest.mark.parametrize("name", MARKED)
def test_every_turn_ends_in_a_token_that_stops_generation(name, chatty, encode):
    template, end, written = MARKED[name]
    tokenizer = chatty(template)
    stops = stop_tokens(tokenizer)
    assert end_of_turn(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    assert stops == sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end or "</s>")})
    _, examples = encode([{"messages": TALK}], tokenizer)
    turns = learnt(examples.table[0], tokenizer)
    assert [tokenizer.decode(turn) for turn in turns] == [f"right{written}", f"wrong{written}"]
    for turn in turns:
        assert [token in stops for token in turn] == [False] * (len(turn) - 1) + [True], (
            "learnt past the end, or no end"
        )
    if end is not None:
        whole = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
        assert examples.table[0]["input_ids"] == whole, "a template's own end needs no other"


@pytest.mark.parametrize("name", MARKED)
def test_a_question_in_the_chat_template_is_closed_as_the_template_closes_it(name, chatty, encode):
    """Without marks for the assistant's words as well, which most models lack."""
    template, end, _ = MARKED[name]
    tokenizer = chatty(unmarked(template))
    _, examples = encode([{"instruction": "One?", "input": "", "output": "right"}], tokenizer, template="chat")
    assert [tokenizer.decode(turn) for turn in learnt(examples.table[0], tokenizer)] == ["right" + (end or "</s>")]
    for other in ("alpaca", "plain", "verbatim", "conversation"):
        assert closing_token(other, tokenizer) == tokenizer.eos_token_id, "our own layouts end in the end of sequence"


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", MARKED)
def test_evaluation_shows_a_system_turn_as_training_does(name, marked, chatty, encode):
    template = MARKED[name][0]
    tokenizer = chatty(template if marked else unmarked(template))
    records, examples = encode([{"messages": TALK[:3]}], tokenizer)
    turn = records.schema.turn(records.rows[0])
    assert turn == Turn("One?", "", "right", "Be kind.")
    asked = tokenizer(find_template(records.template)(turn, tokenizer))["input_ids"]
    row = examples.table[0]
    trained = tokenizer.decode(row["input_ids"][: row["supervised"][0]])
    assert "Be kind." in trained and tokenizer.decode(asked).rstrip() == trained.rstrip()


def test_a_system_turn_that_the_template_refuses_stands_in_the_question(chatty):
    text = find_template("chat")(Turn("One?", "x", "", "Be kind."), chatty(NO_SYSTEM))
    assert text == "<|im_start|>user\nBe kind.\n\nOne?\n\nx<|im_end|>\n<|im_start|>assistant\n"


def test_an_end_that_is_no_special_token_still_ends(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    tokenizer.chat_template = CHATML
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_without_a_chat_template_the_end_of_sequence_is_all(tokenizer):
    assert end_of_turn(tokenizer) is None and stop_tokens(tokenizer) == [tokenizer.eos_token_id]
    assert closing_token("chat", tokenizer) == closing_token("alpaca", tokenizer) == tokenizer.eos_token_id
