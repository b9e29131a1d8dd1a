"""lm-evaluation-harness on a small fine-tuned model, over tasks and data on this machine."""

import json
import shutil
import socket

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradfiltering.errors import UserError
from gradfiltering.judging import lm_harness
from gradfiltering.judging.lm_harness import load_tuned_model, run_harness
from tests.support.command import run_command
from tests.support.pipeline import tiny_gpt2

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional extra")
# Words, because the library takes digits for numbers and for positions among the choices.
WORDS = ("Say", "Say it", "Say it is", "it is", "it is so", "Is it")
QUESTIONS = list(zip(WORDS, "abcabc", strict=True))
COMMON = {
    "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
}  # fmt: skip
CHOICES = ["a", "b", "c"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with two fine-tuned models, as train.py leaves it."""
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("run")
    tiny_gpt2(base)
    for seed, name in enumerate(("candidate", "full")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(
            folder / "target" / name / "adapter"
        )
    (folder / "summary.json").write_text('{"stages": []}')
    base_model = {"_target_": "TinyBackbone", "precision": "fp32", "attention": "sdpa"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"target": {"base_model": base_model}}))
    return folder


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    """Two tasks of one's own over a local file: which of three continuations, and what is written."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in QUESTIONS))
    files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    pick = {"task": "pick", "output_type": "multiple_choice", "doc_to_choice": CHOICES, "target_delimiter": " ",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    write = {"task": "write", "output_type": "generate_until",
             "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
             "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    for task in (pick, write):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**COMMON, **files, **task}))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*address, **_):
        raise AssertionError(f"the network was asked for {address}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def picked(run, model):
    """The slow twin: of each question the continuation with the highest log-likelihood, by plain forward passes."""
    loaded = load_tuned_model(run, model, "cpu")
    right = []
    for question, answer in QUESTIONS:
        sums = []
        for choice in CHOICES:
            prompt, whole = (loaded.tokenizer(text)["input_ids"] for text in (question, f"{question} {choice}"))
            with torch.no_grad():
                logs = loaded.model(torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(float(logs[at - 1, whole[at]]) for at in range(len(prompt), len(whole))))
        right.append(CHOICES[sums.index(max(sums))] == answer)
    return sum(right) / len(right)


@pytest.mark.slow
def test_tasks_over_local_files_need_no_network_and_agree_with_plain_forward_passes(run, include, no_network, capsys):
    values = {}
    for model in ("candidate", "full"):
        command = ["harness", str(run), "--tasks", "pick,write", "--include", str(include), "--model", model]
        assert run_command("judge", *command, "--batch-size", 4, "--device", "cpu", "--json") == 0
        out = capsys.readouterr().out
        found = json.loads(out[out.index("{\n") :])  # the library prints progress before
        assert (found["pick"]["samples"], found["pick"]["shots"], found["pick"]["limit"]) == (6, 0, None)
        value = found["pick"]["metrics"]["acc,none"]["value"]
        assert value == pytest.approx(picked(run, model), abs=TOLERANCE)
        share = value * (1 - value)
        assert found["pick"]["metrics"]["acc,none"]["stderr"] == pytest.approx((share / 5) ** 0.5, abs=TOLERANCE)
        assert 0 <= found["write"]["metrics"]["exact_match,none"]["value"] <= 1
        values[model] = found
    summary = json.loads((run / "summary.json").read_text())
    assert summary == {"stages": [], "harness": values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "no task is named"),
        ({"include": "none"}, "is no folder"),
        ({"model": "random"}, "models in .*: candidate, full"),
        ({"chat": True}, "no chat template"),
        ({"device": "tpu9"}, "device=tpu9"),
    ],
)
def test_what_cannot_be_run_is_named(run, include, tmp_path, change, message):
    given = {"tasks": ["pick"], "include": include, "chat": False, "model": "candidate", "device": "cpu", **change}
    folder = tmp_path / "none" if given["include"] == "none" else include
    with pytest.raises(UserError, match=message):
        run_harness(
            run,
            given["model"],
            given["tasks"],
            folder,
            document_limit=2,
            use_chat_template=given["chat"],
            batch_size=2,
            device_name=given["device"],
        )
    with pytest.raises(UserError, match="no run folder"):
        run_harness(tmp_path, "candidate", ["pick"], include, device_name="cpu")


@pytest.mark.slow
def test_a_misspelt_task_gets_a_hint(run, include):
    """Slow: the library reads all of its task files to know that it has none of this name."""
    with pytest.raises(UserError, match=r"knows no task 'hellaswgg'; of like spelling: .*hellaswag"):
        run_harness(run, "candidate", ["hellaswgg"], include, device_name="cpu")


def test_an_adapter_is_evaluated_on_weights_quantized_as_those_it_was_trained_on(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    config = yaml.safe_load((copy / "config.yaml").read_text("utf-8"))
    config["target"]["base_model"]["quantization"] = "4bit"
    (copy / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    asked = []

    def load(base_model, device_name):
        asked.append(base_model.quantization)
        raise InterruptedError

    monkeypatch.setattr(lm_harness, "load_on_device", load)
    for folder in (copy, run):
        with pytest.raises(InterruptedError):
            load_tuned_model(folder, "candidate", "cpu")
    assert asked == ["4bit", None]


def test_the_tuned_model_answers_not_its_backbone(run):
    tuned, other = load_tuned_model(run, "candidate", "cpu"), load_tuned_model(run, "full", "cpu")
    tokens = torch.tensor([tuned.tokenizer("Say it is 7")["input_ids"]])
    bare = AutoModelForCausalLM.from_pretrained(tuned.model.get_base_model().name_or_path)
    with torch.no_grad():
        logits = [model(tokens).logits for model in (tuned.model, other.model, bare)]
    assert not torch.allclose(logits[0], logits[2]) and not torch.allclose(logits[0], logits[1])
    assert tuned.context_length == 128
    assert isinstance(tuned.tokenizer, type(AutoTokenizer.from_pretrained(bare.name_or_path)))
