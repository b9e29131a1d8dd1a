"""References: every part has a word on where it comes from, and a run cites what it used."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gradfiltering.reports.references import (
    DATASET_REFERENCES,
    LOSS_RATIO,
    MODEL_REFERENCES,
    PART_REFERENCES,
    format_bibtex,
    list_references,
    read_bibliography,
)

SOURCE = Path(__file__).parents[2] / "src"
CONF = Path(__file__).parents[2] / "conf"
ENSEMBLES = sorted((CONF / "ensemble").glob("*.yaml"))
CONFIG = {
    "ensemble": {"_target_": "gradfiltering.ensembles.lora_ensemble.LoraEnsemble"},
    "scorer": {"_target_": "gradfiltering.scorers.gsnr.GSNR"},
    "selector": {"_target_": "gradfiltering.selectors.spice.SpiceSelector"},
    "judge": {"judge": {"_target_": "gradfiltering.judging.openai_judge.OpenAIJudge"}},
}
WHOLE = {"proxy": {}, "selection": {"scorer": "gsnr"}, "target": {}, "pws": {"full": {}}}


def keys(config, summary):
    return list_references(config, summary)


def test_every_part_with_a_reference_is_a_class_of_the_project():
    names = {
        node.name
        for path in SOURCE.rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert set(PART_REFERENCES) - {"EnsembleSettings"} <= names, "an old name is for old run folders"


@pytest.mark.parametrize("file", ENSEMBLES, ids=lambda file: file.stem)
def test_every_ensemble_cites_lora(file):
    class_name = yaml.safe_load(file.read_text("utf-8"))["_target_"].rpartition(".")[2]
    assert "hu2022lora" in PART_REFERENCES[class_name]


def test_every_cited_key_is_a_whole_entry_of_the_bibliography():
    parts = {key for keys in [*PART_REFERENCES.values(), LOSS_RATIO] for key in keys}
    entries = read_bibliography().entries
    assert parts | {*MODEL_REFERENCES.values(), *DATASET_REFERENCES.values()} <= set(entries)
    for entry in entries.values():
        assert entry.persons["author"] and entry.fields["title"] and re.fullmatch(r"(19|20)\d\d", entry.fields["year"])
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.fields.get("eprint", "0000.0000"))


def test_a_run_cites_what_it_used_and_nothing_twice():
    assert keys(CONFIG, WHOLE) == [
        "yuan2026gradfiltering", "hu2022lora", "chang2026spice", "zheng2023judging", "efron1993bootstrap",
    ]  # fmt: skip
    assert format_bibtex(CONFIG, WHOLE).count("@") == 5


def test_what_was_configured_and_not_reached_is_not_cited():
    assert keys(CONFIG, {"selection": {"scorer": None}}) == ["chang2026spice"]
    assert keys(CONFIG, {"proxy": {}}) == ["yuan2026gradfiltering", "hu2022lora"]
    assert keys(CONFIG, {"stages": [{"name": "score"}]}) == ["yuan2026gradfiltering"]
    assert keys(CONFIG, {"pws": {}}) == keys(CONFIG, {}) == [], "nobody was judged"
    assert keys(CONFIG, {"influence": {}}) == ["hu2022lora"], "members were trained, and no norms logged"


def test_parts_of_parts_are_cited():
    inner = {"_target_": "gradfiltering.scorers.ifd.IFD"}
    fused = {"_target_": "gradfiltering.scorers.fused_rank.RankFusion", "parts": {"ifd": inner}, "list": [inner]}
    assert keys({**CONFIG, "scorer": fused}, {"selection": {"scorer": "fused_rank"}}) == [
        "li2024superfiltering", "li2024quantity", "chang2026spice",
    ]  # fmt: skip


@pytest.mark.parametrize(("ratio", "cited"), [
    ("perplexity", ["li2024superfiltering", "li2024quantity"]), ("loss", ["li2024quantity"]),
])  # fmt: skip
def test_the_ratio_of_losses_is_the_earlier_papers(ratio, cited):
    scorer = {"_target_": "gradfiltering.scorers.ifd.IFD", "ratio": ratio}
    assert keys({"scorer": scorer}, {"selection": {"scorer": "ifd"}}) == cited


@pytest.mark.parametrize(("part", "cited"), [
    ({"proxy": {"model": "openai-community/gpt2-medium"}}, ["radford2019gpt2"]),
    ({"proxy": {"backbone": {"architecture": "gpt2"}}}, []),
    ({"target": {"backbone": {"model": "/models/Llama-2-7b-hf"}}}, ["hu2022lora", "touvron2023llama2"]),
    ({"data": {"name": "vicgalle/alpaca-gpt4"}}, ["peng2023alpacagpt4"]),
    ({"data": {"name": None, "path": "alpaca_data.json"}}, ["taori2023alpaca"]),
    ({"data": {"sources": {"a": {"path": "alpaca_gpt4_data.json"}, "b": {"path": "alpaca_data.json"}}}},
     ["peng2023alpacagpt4", "taori2023alpaca"]),
    ({"data": {"path": "mine.jsonl"}}, []),
])  # fmt: skip
def test_models_and_datasets_are_recognised_by_their_names(part, cited):
    assert keys(part, {"target": {}} if "target" in part else {}) == cited
    assert keys({"target": part.get("target")}, {}) == [], "a target that was not trained"


def test_lead_is_cited_in_place_of_scorer_and_selector():
    asked = [
        "run_dir=-",
        "cache.path=-",
        "proxy=gpt2",
        "target=llama2_7b",
        "target.data=lead",
        "selector=spice",
        "data=alpaca",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=asked), resolve=True)
    summary = {
        "stages": [{"name": "score"}], "selection": {"scorer": None, "selector": "lead"}, "target": {"candidate": {}},
    }  # fmt: skip
    assert keys(config, summary) == [
        "lin2025lead", "li2024superfiltering", "li2024quantity", "hu2022lora", "touvron2023llama2", "taori2023alpaca",
    ]  # fmt: skip
