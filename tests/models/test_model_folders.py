"""Folders as people have them: each is loaded as it should be, or refused in one line with the remedy."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from gradfiltering.data.batches import IGNORED
from gradfiltering.errors import UserError
from gradfiltering.models.language_model import PretrainedModel
from tests.support.pipeline import SMALL_TASKS, run_train, tiny_gpt2

CPU = torch.device("cpu")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FIRST_LAYER = "transformer.h.0.attn.c_attn.weight"
BROKEN_TEMPLATE = "{% for message in messages %}{{ message['content'] }"


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory) -> Path:
    return tiny_gpt2(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def folder(good_folder, tmp_path) -> Path:
    return shutil.copytree(good_folder, tmp_path / "model")


def change_weights(change):
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def change_json(name: str, **values):
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**content, **values}), "utf-8")

    return damage


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text, "utf-8")


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def without(weights: dict, *names: str) -> dict:
    return {name: value for name, value in weights.items() if name not in names}


def save_in_shards(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("model-0*.safetensors"))) > 1


def lose_a_shard(folder: Path) -> None:
    save_in_shards(folder)
    max(folder.glob("model-0*.safetensors")).unlink()


def point_from_a_shard(folder: Path) -> None:
    save_in_shards(folder)
    max(folder.glob("model-0*.safetensors")).write_text(POINTER)


def forget_a_key_of_a_shard(folder: Path) -> None:
    save_in_shards(folder)
    for path in folder.glob("model-0*.safetensors"):
        save_file(without(load_file(path), FIRST_LAYER), path, metadata={"format": "pt"})
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["weight_map"].pop(FIRST_LAYER)
    index_path.write_text(json.dumps(index))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def pickle_a_command(folder: Path) -> None:
    torch.save({FIRST_LAYER: Command()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def classifier(folder: Path) -> None:
    GPT2ForSequenceClassification.from_pretrained(folder, num_labels=2).save_pretrained(folder)


def encoder(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=320, **sizes)).save_pretrained(folder)


def encoder_decoder(folder: Path) -> None:
    config = T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def adapter(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", base_model_name_or_path="some/base")
    for path in folder.iterdir():
        path.unlink()
    get_peft_model(model, lora).save_pretrained(folder)


def adapter_beside_the_model(folder: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).save_pretrained(folder)


def quantized(**settings):
    return change_json("config.json", quantization_config=settings)


def add_tokens(folder: Path, count: int = 400, **special: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(count)])
    if special:
        tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def end_beyond_the_embedding(folder: Path) -> None:
    add_tokens(folder, eos_token="<end>")


def named_templates(*names: str):
    def damage(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = {name: "{{ messages[0]['content'] }}" for name in names}
        tokenizer.save_pretrained(folder)

    return damage


def template(text: str):
    return write("chat_template.jinja", text)


REFUSED = {
    "missing weight": (change_weights(lambda w: without(w, FIRST_LAYER)), ["lacks", FIRST_LAYER, "save_pretrained"]),
    "several missing weights": (
        change_weights(lambda w: {name: w[name] for name in list(w)[:3]}), ["lacks", "and", "more", "save_pretrained"]),
    "unexpected weight": (
        change_weights(lambda w: {**w, "v_head.summary.weight": torch.zeros(1, 16)}),
        ["holds v_head.summary.weight, which GPT2LMHeadModel does not use"]),
    "wrong prefix": (
        change_weights(lambda w: {f"actor.{name}": value for name, value in w.items()}), ["lacks", "holds actor."]),
    "other width": (
        change_weights(lambda w: {**w, "transformer.wpe.weight": torch.zeros(3, 16)}),
        ["transformer.wpe.weight of shape [3, 16] where config.json asks for [128, 16]"]),
    "more layers than weights": (change_json("config.json", n_layer=2), ["lacks transformer.h.1.", "and 9 more"]),
    "fewer layers than weights": (lambda folder: (change_json("config.json", n_layer=2)(folder),
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder),
        change_json("config.json", n_layer=1)(folder)), ["holds transformer.h.1.", "does not use"]),
    "untied head that is missing": (change_json("config.json", tie_word_embeddings=False), ["lacks lm_head.weight"]),
    "a classifier": (classifier, ["holds score.weight, which GPT2LMHeadModel does not use"]),
    "an encoder": (encoder, ["lacks", "cls.predictions"]),
    "an encoder and decoder": (encoder_decoder, ["Unrecognized configuration class", "T5Config"]),
    "key missing in shards": (forget_a_key_of_a_shard, ["lacks", FIRST_LAYER]),
    "lost shard": (lose_a_shard, ["cannot load", "model-0"]),
    "pointer for weights": (
        write("model.safetensors", POINTER), ["model.safetensors is a pointer of git-lfs", "git lfs pull"]),
    "pointer for a shard": (point_from_a_shard, ["is a pointer of git-lfs", "git lfs pull"]),
    "pointer for the tokenizer": (write("tokenizer.json", POINTER), ["tokenizer.json is a pointer of git-lfs"]),
    "pointer for the configuration": (write("config.json", POINTER), ["config.json is a pointer of git-lfs"]),
    "empty weights": (write("model.safetensors", ""), ["model.safetensors is empty", "again"]),
    "web page for weights": (
        write("model.safetensors", "<!doctype html>" * 9), ["the weights of", "cannot be read", "again"]),
    "cut weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 4000), ["the weights of", "cannot be read", "again"]),
    "no weights": (remove("model.safetensors"), ["cannot load", "model.safetensors"]),
    "no configuration": (remove("config.json"), ["cannot load", "config.json"]),
    "broken configuration": (write("config.json", '{"model_type": "gpt2",'), ["config.json is no JSON", "again"]),
    "configuration that is a list": (write("config.json", "[]"), ["config.json holds no JSON object"]),
    "unknown model type": (change_json("config.json", model_type="gpt99"), ["cannot load", "gpt99"]),
    "no tokenizer": (
        lambda folder: (remove("tokenizer.json")(folder), remove("tokenizer_config.json")(folder)),
        ["has no vocabulary", "put tokenizer.json"]),
    "bitsandbytes": (quantized(quant_method="bitsandbytes", load_in_4bit=True), ["quantised (bitsandbytes)", "bf16"]),
    "gptq": (quantized(quant_method="gptq", bits=4), ["quantised (gptq)", "bf16, fp16 or fp32"]),
    "awq": (quantized(quant_method="awq", bits=4), ["quantised (awq)", "delete quantization_config"]),
    "unknown quantisation": (quantized(bits=3), ["quantised (by an unnamed method)"]),
    "adapter": (adapter, ["holds an adapter of PEFT for ", "merge_and_unload"]),
    "adapter beside the model": (adapter_beside_the_model, ["holds an adapter of PEFT", "give the base model"]),
    "pickled command": (pickle_a_command, ["hold more than tensors", "convert them to safetensors"]),
    "broken chat template": (template(BROKEN_TEMPLATE), ["the chat template of", "is broken", "mend it in"]),
    "template with an unknown filter": (template("{{ messages | shout }}"), ["chat template", "is broken", "shout"]),
    "template of another language": (
        template("{{ messages[0].content.strip(1, 2, 3, 4) }}"),
        ["fails on a question with an answer", "mend or delete"]),
    "named templates without a default": (
        named_templates("rag", "tool_use"), ["several chat templates (rag, tool_use)", "named default"]),
    "end of text beyond the embedding": (end_beyond_the_embedding, ["ends a text with token", "embeds only 320"]),
}  # fmt: skip
WORKS = {
    "as it was": lambda folder: None,
    "shards": save_in_shards,
    "pickled tensors": pickle_weights,
    "buffers of older versions": change_weights(
        lambda w: {
            **w,
            "transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9),
            "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        }
    ),
    "no empty quantisation": change_json("config.json", quantization_config=None),
    "named templates with a default": named_templates("default", "tool_use"),
    "template that refuses a system turn": template("{{ messages[0].content }}"),
    "unused tokens beyond the embedding": add_tokens,
    "padding token beyond the embedding": lambda folder: add_tokens(folder, pad_token="<pad>"),
}


def source(folder: Path, **changes) -> PretrainedModel:
    return PretrainedModel(str(folder), **{"precision": "fp32", **changes})


def assert_refused(act, case: str, folder: Path, monkeypatch) -> None:
    damage, words = REFUSED[case]
    damage(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError) as refusal:
        act(source(folder))
    message = str(refusal.value)
    assert "\n" not in message and str(folder) in message
    assert not [word for word in words if word not in message], message
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_is_refused_before_any_work(case, folder, monkeypatch):
    assert_refused(PretrainedModel.check, case, folder, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_is_refused_when_it_is_loaded(case, folder, monkeypatch):
    assert_refused(lambda model_source: model_source.load(CPU), case, folder, monkeypatch)


@pytest.mark.parametrize("case", WORKS)
def test_a_folder_works_and_gives_the_same_numbers(case, folder, good_folder):
    WORKS[case](folder)
    source(folder).check()
    language_model = source(folder).load(CPU)
    ids = torch.arange(3, 12)[None]
    expected = AutoModelForCausalLM.from_pretrained(good_folder)(input_ids=ids).logits
    torch.testing.assert_close(language_model.model(input_ids=ids).logits, expected)
    assert language_model.pad_id < language_model.embedding_count


def test_attention_that_a_model_lacks_is_named(folder):
    with pytest.raises(UserError, match=r"has no such attention: .*Choose the attention auto or eager"):
        source(folder, attention="flush").load(CPU)


class Rows:
    def __init__(self, *rows):
        self.example_ids, self.table, self.sequence_count = [4, 7], {"input_ids": list(rows)}, 1

    def sequences(self):
        return self


def test_a_row_with_a_token_beyond_the_embedding_is_named(folder):
    add_tokens(folder)
    model = source(folder).load(CPU)
    model.check_examples(Rows([1, 2], [3, 319]))
    token = model.tokenizer.convert_ids_to_tokens(320)
    with pytest.raises(UserError, match=rf"row 7 holds the token '{token}' \(320\), .* embeds only 320; give the tok"):
        model.check_examples(Rows([1, 2], [3, 320, IGNORED]))


@pytest.mark.parametrize("case", ["missing weight", "pointer for weights", "adapter"])
def test_a_run_ends_with_one_line_before_anything_is_made(case, folder, tmp_path, capsys):
    damage, words = REFUSED[case]
    damage(folder)
    options = ["target=llama2_7b", f"target.model={folder}", f"cache.path={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit):
        run_train(f"run_dir={tmp_path / 'run'}", *SMALL_TASKS, *options)
    error_text = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error_text
    assert not [word for word in words if word not in error_text], error_text
    assert not (tmp_path / "cache").exists(), "something was trained before"


def test_a_run_says_which_token_is_not_embedded(folder, tmp_path, capsys):
    add_tokens(folder)
    rows = [{"instruction": f"Say {number}", "output": "it is <extra399>"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = ["data=file", f"data.path={tmp_path / 'rows.jsonl'}"]
    proxy = ["proxy=gpt2", f"proxy.model={folder}", "until=select"]
    with pytest.raises(SystemExit):
        run_train(f"run_dir={tmp_path / 'run'}", f"cache.path={tmp_path / 'cache'}", *data, *proxy)
    error_text = " ".join(capsys.readouterr().err.split())
    assert "row 0 holds the token '<extra399>'" in error_text and "embeds only 320" in error_text
