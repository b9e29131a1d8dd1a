"""References: every part has a word on where it comes from, and a run cites what it used."""

import re
from pathlib import Path

import pytest
import yaml

from gradfiltering.report.citations import CITED, REFERENCES, bibtex, references

CONF = Path(__file__).parents[2] / "conf"
PARTS = [file for group in ("scorer", "selector") for file in sorted((CONF / group).glob("*.yaml"))]
CONFIG = {
    "scorer": {"_target_": "gradfiltering.scorers.gsnr.GSNR"},
    "selector": {"_target_": "gradfiltering.selectors.spice.SpiceSelector"},
    "judge": {"judge": {"_target_": "gradfiltering.judge.openai_judge.OpenAIJudge"}},
}
WHOLE = {"proxy": {}, "selection": {"scorer": "gsnr"}, "target": {}, "pws": {}}


def keys(config, summary):
    return [one.key for one in references(config, summary)]


@pytest.mark.parametrize("file", PARTS, ids=lambda file: file.parent.name + "/" + file.stem)
def test_every_scorer_and_selector_says_where_it_comes_from(file):
    target = yaml.safe_load(file.read_text("utf-8"))["_target_"].removeprefix("gradfiltering.")
    assert target in CITED, f"add {target} to CITED in report/citations.py, with () for a method of our own"


def test_every_cited_key_is_a_reference_with_whole_bibtex():
    assert {key for cited in CITED.values() for key in cited} <= set(REFERENCES)
    for key, one in REFERENCES.items():
        text = one.bibtex()
        assert text.startswith(f"@{'inproceedings' if one.booktitle else 'misc'}{{{key},") and text.endswith("}")
        assert text.count("{") == text.count("}") and re.search(r"year = \{(19|20)\d\d\}", text)
        assert not one.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", one.arxiv)


def test_a_run_cites_what_it_used_and_nothing_twice():
    assert keys(CONFIG, WHOLE) == ["yuan2026gradfiltering", "hu2022lora", "chang2026spice", "zheng2023judging"]
    assert bibtex(CONFIG, WHOLE).count("@") == 4


def test_what_was_configured_and_not_reached_is_not_cited():
    assert keys(CONFIG, {"selection": {"scorer": None}}) == ["chang2026spice"]
    assert keys(CONFIG, {"proxy": {}}) == ["yuan2026gradfiltering", "hu2022lora"]


def test_parts_of_parts_are_cited():
    inner = {"_target_": "gradfiltering.scorers.ifd.IFD"}
    fused = {"_target_": "gradfiltering.scorers.fused_rank.FusedRank", "parts": {"ifd": inner}, "list": [inner]}
    assert keys({**CONFIG, "scorer": fused}, {"selection": {"scorer": "fused_rank"}}) == [
        "li2024superfiltering", "li2024quantity", "chang2026spice",
    ]  # fmt: skip
