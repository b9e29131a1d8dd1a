import pytest

from gradfiltering.data.templates import TEMPLATES, Turn, alpaca, chat, find_template, plain
from gradfiltering.errors import UserError

WITH = Turn("Translate.", "un chat", "a cat")
WITHOUT = Turn("Say hello.", "", "Hello!")

ALPACA_WITH = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Translate.

### Input:
un chat

### Response:
"""
ALPACA_WITHOUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Say hello.

### Response:
"""
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_alpaca_text_is_exact():
    assert alpaca(WITH, None) == ALPACA_WITH
    assert alpaca(WITHOUT, None) == ALPACA_WITHOUT


def test_plain_text_is_exact():
    assert plain(WITH, None) == "Translate.\nun chat\n"
    assert plain(WITHOUT, None) == "Say hello.\n"


def test_chat_without_a_template_of_the_tokenizer(tokenizer):
    assert chat(WITH, tokenizer) == "<|user|>\nTranslate.\n\nun chat\n<|assistant|>\n"
    assert chat(WITHOUT, tokenizer) == "<|user|>\nSay hello.\n<|assistant|>\n"


def test_chat_uses_the_tokenizers_own_template(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    assert chat(WITH, tokenizer) == "<s><user>Translate.\n\nun chat</user><assistant>"
    assert chat(WITHOUT, tokenizer) == "<s><user>Say hello.</user><assistant>"


def test_chat_never_doubles_the_start_token(make_tokenizer):
    """A template that writes `<s>` and a tokenizer that adds it must still give one."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    start = tokenizer.bos_token_id
    assert tokenizer(chat(WITH, tokenizer))["input_ids"].count(start) == 1
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    ids = tokenizer(chat(WITH, tokenizer))["input_ids"]
    assert ids[0] == start and ids.count(start) == 1, "the prompt starts with two start tokens"


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_looks_at_the_output(name, tokenizer):
    render = find_template(name)
    assert render(Turn("a", "b", "c"), tokenizer) == render(Turn("a", "b", "secret"), tokenizer)


def test_unknown_template_lists_what_exists():
    with pytest.raises(UserError, match=r"the template vicuna is unknown.*alpaca, chat, conversation, plain, verbatim"):
        find_template("vicuna")
