import copy
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from gradfiltering.errors import UserError
from gradfiltering.judging.generation import GenerationSettings, generate_responses, render_prompts
from gradfiltering.judging.prompts import Prompt
from gradfiltering.judging.responses import read_responses, write_responses
from gradfiltering.runs.run_displays import ProgressBar

CONTEXT = 48
NEW_TOKENS = 8
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards quietly box with liquor jugs"
TEXTS = [" ".join(WORDS.split()[: 1 + (5 * n) % 16]) for n in range(7)]
PROMPTS = [Prompt("tasks", str(n), text, "", None) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they bring for matrices of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", padding_side="right")


def build_model(family: str, tokenizer):
    """A random model whose answers end, some by the end-of-sequence token and some by length."""
    torch.manual_seed(11)
    size = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": 5, "pad_token_id": None}
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4, **size))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                max_position_embeddings=CONTEXT,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                **size,
            )
        )
    model.eval()
    with torch.no_grad():
        # Large weights make the answers depend on the prompt; the default initialisation repeats one token.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
        # A common token becomes the end of the answer for some prompts and not for others.
        head = model.get_output_embeddings()
        plain = _greedy(model, tokenizer, TEXTS[0])
        head.weight[tokenizer.eos_token_id] = head.weight[plain[3]] * 1.01
    return model.double()


def _greedy(model, tokenizer, text: str) -> list[int]:
    """One prompt alone, without padding, cache or `generate`."""
    tokens = tokenizer(text)["input_ids"]
    start = len(tokens)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            tokens = [*tokens, int(model(torch.tensor([tokens])).logits[0, -1].argmax())]
            if tokens[-1] == tokenizer.eos_token_id:
                break
    return tokens[start:]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tokenizer):
    return build_model(request.param, tokenizer)


def answer(model, tokenizer, prompts=PROMPTS, texts=TEXTS, batch_size=8, max_new_tokens=NEW_TOKENS):
    settings = GenerationSettings(max_new_tokens, batch_size)
    return generate_responses(model, tokenizer, prompts, texts, settings, description="test")


def test_each_answer_is_the_plain_greedy_one_whatever_the_batch(model, tokenizer):
    expected = [_greedy(model, tokenizer, text) for text in TEXTS]
    endings = ["eos" if tokens[-1] == tokenizer.eos_token_id else "length" for tokens in expected]
    assert set(endings) == {"eos", "length"}, "the toy model must end some answers and not others"
    assert len({tuple(tokens) for tokens in expected}) > 3, "the toy model must answer differently"
    for batch_size in (1, 3, 100):
        responses = answer(model, tokenizer, batch_size=batch_size)
        assert [response.prompt_id for response in responses] == [prompt.prompt_id for prompt in PROMPTS]
        assert [response.prompt for response in responses] == TEXTS
        assert [response.stop_reason for response in responses] == endings
        assert [response.response_tokens for response in responses] == [len(tokens) for tokens in expected]
        assert [response.prompt_tokens for response in responses] == [
            len(tokenizer(text)["input_ids"]) for text in TEXTS
        ]
        # A wrong answer in the larger batches only points at padding side, attention mask or position ids.
        assert [response.response for response in responses] == [
            tokenizer.decode(tokens, skip_special_tokens=True) for tokens in expected
        ], f"batch size {batch_size}"


def test_the_end_of_turn_of_the_chat_template_ends_an_answer(tokenizer):
    """A model trained on turns that end in `<|im_end|>` never says the end of sequence."""
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    model = build_model("gpt2", tokenizer)
    text, plain = max(((text, _greedy(model, tokenizer, text)) for text in TEXTS), key=lambda pair: len(pair[1]))
    chatty.add_tokens([AddedToken("<|im_end|>", special=False)])
    end = len(chatty) - 1
    model.resize_token_embeddings(len(chatty), mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[end] = model.get_output_embeddings().weight[plain[2]] * 1.01
    first = plain.index(plain[2])
    (stopped,) = answer(model, chatty, PROMPTS[:1], [text])
    assert (stopped.stop_reason, stopped.response_tokens) == ("eos", first + 1)
    assert stopped.response == tokenizer.decode(plain[:first], skip_special_tokens=True), (
        "the end is none of the answer"
    )
    chatty.chat_template = None
    (endless,) = answer(model, chatty, PROMPTS[:1], [text])
    assert endless.response_tokens > first + 1, "without a chat template the token ends nothing"


def test_a_model_without_a_limit_takes_any_prompt(tokenizer):
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)).eval()
    long = " ".join([WORDS] * 5)
    (response,) = answer(model, tokenizer, PROMPTS[:1], [long])
    assert not response.prompt_truncated and response.prompt_tokens == len(tokenizer(long)["input_ids"])


def test_tokenizer_and_mode_are_left_alone(model, tokenizer):
    before = (
        tokenizer.padding_side,
        tokenizer.pad_token,
        tokenizer.truncation_side,
        dict(tokenizer.special_tokens_map),
    )
    model.train()
    answer(model, tokenizer)
    assert model.training
    model.eval()
    answer(model, tokenizer)
    assert not model.training
    assert before == (
        tokenizer.padding_side,
        tokenizer.pad_token,
        tokenizer.truncation_side,
        dict(tokenizer.special_tokens_map),
    )


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("wrapped", [False, True])
def test_decoding_options_of_the_model_do_not_apply(model, tokenizer, wrapped):
    other = copy.deepcopy(model)
    other.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0, min_length=40)
    options = other.generation_config
    # A fresh adapter changes nothing, so a PEFT model answers as the model it wraps.
    tuned = get_peft_model(other, LoraConfig(r=2, target_modules="all-linear")) if wrapped else other
    assert answer(tuned, tokenizer) == answer(model, tokenizer)
    assert other.generation_config is options


def test_a_long_prompt_loses_its_start_and_says_so(model, tokenizer):
    long = " ".join([WORDS] * 5)
    room = CONTEXT - NEW_TOKENS
    tokens = tokenizer(long)["input_ids"]
    assert len(tokens) > room
    prompts = [PROMPTS[0], Prompt("tasks", "long", long, "", None)]
    short, cut = answer(model, tokenizer, prompts, [TEXTS[0], long])
    assert (short.prompt_truncated, cut.prompt_truncated) == (False, True)
    assert (cut.prompt_tokens, cut.prompt) == (room, long)
    end = tokenizer.decode(tokens[-room:])
    assert tokenizer(end)["input_ids"] == tokens[-room:]
    assert answer(model, tokenizer, prompts[1:], [end])[0].response == cut.response


def test_a_beginning_of_sequence_token_survives_truncation(tokenizer):
    from gradfiltering.judging.generation import truncate_start

    assert truncate_start([1, 10, 11, 12, 13], prompt_room=3, bos_id=1) == [1, 12, 13]
    assert truncate_start([10, 11, 12, 13], prompt_room=3, bos_id=1) == [11, 12, 13]
    assert truncate_start([1, 10], prompt_room=3, bos_id=1) == [1, 10]
    assert truncate_start([1, 10, 11], prompt_room=sys.maxsize, bos_id=1) == [1, 10, 11]


def test_what_cannot_work_is_refused(model, tokenizer):
    with pytest.raises(UserError, match=rf"max_new_tokens is {CONTEXT}, .* context holds {CONTEXT} tokens"):
        answer(model, tokenizer, max_new_tokens=CONTEXT)
    with pytest.raises(UserError, match="batch_size must be a positive"):
        answer(model, tokenizer, batch_size=0)
    with pytest.raises(UserError, match=r"prompt '0' of tasks has no token"):
        answer(model, tokenizer, PROMPTS[:1], [""])
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        answer(model, endless)


def test_no_prompts_no_answers(model, tokenizer):
    assert answer(model, tokenizer, [], []) == []


def test_rendering_uses_the_training_template(tokenizer):
    prompts = [Prompt("tasks", "0", "Add.", "1 2", "3"), Prompt("tasks", "1", "Hello?", "", None)]
    texts = render_prompts(prompts, "alpaca", tokenizer)
    assert "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:" in texts[0]
    assert "### Input" not in texts[1] and "### Instruction:\nHello?" in texts[1]
    asked = Prompt("heldout", "0", "Hello?", "", None, "Be kind.")
    assert render_prompts([asked], "conversation", tokenizer) == [
        "<|system|>\nBe kind.\n<|user|>\nHello?\n<|assistant|>\n"
    ]
    with pytest.raises(UserError, match="nonsense"):
        render_prompts(prompts, "nonsense", tokenizer)


def test_responses_round_trip(model, tokenizer, tmp_path):
    responses = answer(model, tokenizer)
    path = tmp_path / "responses" / "candidate.jsonl"
    write_responses(path, responses)
    assert read_responses(path) == responses
    assert [file.name for file in path.parent.iterdir()] == ["candidate.jsonl"]
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"candidate.jsonl, line 1: Response needs the argument"):
        read_responses(path)


def test_progress_is_shown_while_a_batch_is_answered(model, tokenizer, monkeypatch):
    """Each new token of a batch counts, and an answer that ends early counts as a whole one."""
    amounts = []
    monkeypatch.setattr(ProgressBar, "advance", lambda bar, amount: amounts.append(("tokens", amount)))
    monkeypatch.setattr(ProgressBar, "complete", lambda bar, amount: amounts.append(("done", amount, bar.total)))
    responses = answer(model, tokenizer, batch_size=4)
    whole = len(PROMPTS) * NEW_TOKENS
    ends = [index for index, amount in enumerate(amounts) if amount[0] == "done"]
    assert [amounts[index] for index in ends] == [("done", 4 * NEW_TOKENS, whole), ("done", whole, whole)]
    first_batch, second_batch = amounts[: ends[0]], amounts[ends[0] + 1 : ends[1]]
    assert set(first_batch) == {("tokens", 4)} and set(second_batch) == {("tokens", 3)}
    assert max(len(first_batch), len(second_batch)) == max(item.response_tokens for item in responses)


def test_the_output_layer_reads_one_block_and_has_no_hook_afterwards(model, tokenizer):
    """A view of all positions makes the matrix product of a processor copy the weights for every prompt."""
    output_layer, blocks = model.get_output_embeddings(), []
    handle = output_layer.register_forward_hook(lambda layer, inputs, logits: blocks.append(inputs[0].is_contiguous()))
    answer(model, tokenizer, batch_size=4)
    handle.remove()
    assert blocks and all(blocks)
    assert not output_layer._forward_pre_hooks
