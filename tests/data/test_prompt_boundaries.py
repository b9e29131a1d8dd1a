"""What stands on either side of the boundary of prompt and response, whatever tokenizer and template do."""

from dataclasses import replace

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import GPT2TokenizerFast, LlamaTokenizerFast

from gradfiltering.data.chat_encoding import QUESTION_LEFT_OUT
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.templates import Turn, find_template, surrounding_tokens, tokenize_prompts
from gradfiltering.errors import UserError

ROWS = [{"instruction": "One?", "input": "x", "output": "right"}, {"instruction": "Two?", "input": "", "output": "no"}]
TALK = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "right"}]
MARKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ CONTENT }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.role }}:{{ CONTENT }};{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"


@pytest.fixture
def encode(write_rows, file_source, cache):
    def run(rows, tokenizer, template="plain"):
        dataset = replace(file_source(write_rows(rows)), template=template).load(0)
        return dataset, Encoder(tokenizer, 512, cache).encode(dataset)

    return run


def adding(tokenizer, single):
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("template", ["plain", "alpaca", "verbatim", "chat", "conversation"])
@pytest.mark.parametrize(
    ("single", "around"), [("$A", ([], [])), ("<s> $A", ([0], [])), ("$A </s>", ([], [1])), ("<s> $A </s>", ([0], [1]))]
)
def test_an_appended_end_token_is_no_part_of_a_prompt(single, around, template, make_tokenizer, encode):
    tokenizer = adding(make_tokenizer(), single)
    assert surrounding_tokens(tokenizer) == around
    _, examples = encode(ROWS, tokenizer, template)
    for row, text in zip(examples.table, ROWS, strict=True):
        start, stop = row["supervised"]
        prompt = row["input_ids"][:start]
        assert prompt[: len(around[0])] == around[0] and tokenizer.eos_token_id not in prompt
        assert prompt.count(tokenizer.bos_token_id) == len(around[0])
        assert tokenizer.decode(row["input_ids"][start:stop]) == text["output"] + "</s>" and stop == row["tokens"]
        assert text["instruction"] in tokenizer.decode(prompt)


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_real_tokenizers_start_a_prompt_as_they_do_alone(name, shared_data):
    kind = {"gpt2": GPT2TokenizerFast, "llama2": LlamaTokenizerFast}[name]
    tokenizer = kind.from_pretrained(str(shared_data / "tokenizers" / name))
    texts = ["", " ", "a", "Hi there.\n", "中 é", "<s>"]
    assert tokenize_prompts(texts, tokenizer) == tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("marked", [True, False])
def test_a_template_that_wants_parts_gets_them(marked, make_tokenizer, encode):
    tokenizer = make_tokenizer()
    template = MARKING.replace("{{ CONTENT }}", PARTS)
    if not marked:
        template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer.chat_template = template
    _, single = encode(ROWS, tokenizer, "chat")
    assert tokenizer.decode(single.table[0]["input_ids"]) == "user:One?\n\nx;A:right</s>"
    _, talk = encode([{"messages": TALK}], tokenizer)
    layout = "user:One?;A:" if marked else "<|user|>\nOne?\n<|assistant|>\n"
    assert tokenizer.decode(talk.table[0]["input_ids"]) == layout + "right</s>"


LEFT_OUT = {
    "no content at all": "{% for m in messages %}{{ m.role }};{% endfor %}",
    "the assistant's words only": MARKING.replace("{{ m.role }}:{{ CONTENT }};", "?").replace("CONTENT", "m.content"),
    "a part of the question": MARKING.replace("CONTENT", "m.content[:2]"),
}


@pytest.mark.parametrize("template", ["chat", "conversation"])
@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_row_whose_question_is_left_out_is_unscored(case, template, make_tokenizer, encode):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = LEFT_OUT[case]
    empty = {"instruction": "", "input": "", "output": "no"}  # of which nothing is left out
    if template == "chat":
        rows = [ROWS[0], empty]
    else:
        tokenizer.chat_template += "{% if 0 %}{% generation %}{% endgeneration %}{% endif %}"
        rows = [{"messages": TALK}, {"messages": [{"role": "user", "content": ""}, TALK[1]]}]
    if template == "conversation" and case == "no content at all":
        with pytest.raises(UserError, match=QUESTION_LEFT_OUT):
            encode(rows, tokenizer, template)
        return
    _, examples = encode(rows, tokenizer, template)
    assert examples.unscored == [(0, QUESTION_LEFT_OUT)] and examples.example_ids.tolist() == [1]


@pytest.mark.parametrize("filter_name", ["trim", "replace('  ', ' ')"])
def test_blanks_that_a_template_drops_are_no_loss(filter_name, make_tokenizer, encode):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MARKING.replace("CONTENT", f"m.content | {filter_name}")
    talk = [{"role": "user", "content": " One?  Two? "}, {"role": "assistant", "content": " right "}]
    _, examples = encode([{"messages": talk}], tokenizer)
    assert examples.not_shown == {} and examples.unscored == []


def test_a_system_turn_that_a_template_leaves_out_is_named_or_moved(make_tokenizer, encode):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + (
        MARKING.replace("CONTENT", "m.content")
    )
    _, examples = encode([{"messages": [{"role": "system", "content": "Be kind."}, *TALK]}], tokenizer)
    assert examples.not_shown == {"system turns": 1}
    prompt = find_template("chat")(Turn("One?", "", "", "Be kind."), tokenizer)
    assert prompt == "user:Be kind.\n\nOne?;A:"


def test_errors_of_a_template_leave_the_row_unscored(make_tokenizer, encode):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if 'One' in messages[0].content %}{{ 1 + 'a' }}{% endif %}" + (
        MARKING.replace("CONTENT", "m.content")
    )
    for rows, template in (([{"messages": TALK}, {"messages": [TALK[1]]}], "conversation"), (ROWS, "chat")):
        _, examples = encode(rows, tokenizer, template)
        assert examples.example_ids.tolist() == [1]
        assert examples.unscored[0][1].startswith("the tokenizer's chat template refuses it: unsupported operand")
