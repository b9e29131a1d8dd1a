"""Answers are generated once for a model, whatever it is called, and for nothing they do not depend on again."""

import shutil
from dataclasses import replace

import pytest
import torch

from gradfiltering.errors import UserError
from gradfiltering.judging import answers as answering
from gradfiltering.judging.generation import GenerationSettings
from gradfiltering.judging.prompts import Prompt
from gradfiltering.models.language_model import PretrainedModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from tests.support.disk import files_up_to

SHAPE = {"architecture": "llama", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
PROMPTS = [Prompt("some", str(number), f"Say {number} and more.", "", None) for number in range(5)]
SETTINGS = GenerationSettings(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["Say it is. 0 1 2 3 4 5 6 7 8 9"], SHAPE["vocabulary"])
    new_model(SHAPE, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def base_model(base, tmp_path):
    loader = PretrainedModel(str(base), None, "fp32", "sdpa", trust_remote_code=False)
    return loader.load(torch.device("cpu"))


@pytest.fixture
def adapters(base_model, tmp_path):
    """Two models, and one of them under another name."""
    lora = LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.0)
    for name, seed in (("candidate", 0), ("full", 1)):
        model, chance = lora.attach(base_model.model), torch.Generator().manual_seed(seed)
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data.copy_(torch.randn(value.shape, generator=chance))
        model.save_pretrained(tmp_path / "run" / "target" / name / "adapter")
        model.unload()
    shutil.copytree(tmp_path / "run/target/full", tmp_path / "run/target/random")


@pytest.fixture
def asked(monkeypatch):
    """Titles of the generations that really took place."""
    titles, generate = [], answering.generate_responses

    def counted(*arguments):
        titles.append(arguments[-1])
        return generate(*arguments)

    monkeypatch.setattr(answering, "generate_responses", counted)
    return titles


@pytest.fixture
def answer(base_model, adapters, asked, tmp_path):
    def run(models=("candidate", "full"), prompts=PROMPTS, template="plain", settings=SETTINGS):
        folders = {name: tmp_path / "run" / "target" / name / "adapter" for name in models}
        cache, device = Cache(tmp_path / "cache"), torch.device("cpu")
        answers = answering.generate_answers(folders, base_model, prompts, template, settings, cache, device)
        run.reused_seconds = answers.reused_seconds
        return answers.responses

    return run


def test_a_second_run_generates_nothing(answer, asked):
    first = answer()
    assert answer.reused_seconds == 0
    assert asked == ["answers of candidate", "answers of full"]
    assert [one.response for one in first["candidate"]] != [one.response for one in first["full"]]
    assert answer() == first and len(asked) == 2 and answer.reused_seconds > 0


def test_a_model_under_another_name_is_the_same_model(answer, asked):
    answers = answer(("full", "random"))
    assert asked == ["answers of full"] and answers["full"] == answers["random"]


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": PROMPTS[:4]}, {"prompts": [*PROMPTS[:4], replace(PROMPTS[4], instruction="Say 9.")]},
        {"prompts": [*PROMPTS[:4], replace(PROMPTS[4], prompt_id="9")]}, {"template": "alpaca"},
        {"settings": replace(SETTINGS, max_new_tokens=7)},
    ],
    ids=["fewer prompts", "another prompt", "a prompt's name", "template", "length"],
)  # fmt: skip
def test_what_answers_depend_on_makes_them_anew(answer, asked, change):
    answer()
    answer(**change)
    assert len(asked) == 4


def test_other_weights_of_adapter_or_backbone_answer_anew(answer, asked, base_model, tmp_path):
    answer()
    shutil.rmtree(tmp_path / "run/target/candidate")
    shutil.copytree(tmp_path / "run/target/full", tmp_path / "run/target/candidate")
    config = tmp_path / "run/target/candidate/adapter/adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    answer(["candidate"])
    assert len(asked) == 3
    next(base_model.model.parameters()).data.add_(0.1)
    answer(["full"])
    assert len(asked) == 4


def test_where_the_backbone_lies_changes_nothing(answer, asked, tmp_path):
    answer(["full"])
    config = tmp_path / "run/target/random/adapter/adapter_config.json"
    config.write_text(config.read_text().replace('"base_model_name_or_path": "', '"base_model_name_or_path": "/else'))
    answer(["random"])
    assert len(asked) == 1


def test_a_full_disk_leaves_the_store_usable(answer, asked, tmp_path):
    with files_up_to(300), pytest.raises(UserError, match=r"cannot write .*answers.*File too large.*cache\.path="):
        answer(["full"])
    assert not list(tmp_path.rglob("*.part")), "half a file stayed behind"
    assert answer(["full"])["full"] and answer(["full"]) and len(asked) == 2
