"""The reference of options holds every option, with its meaning."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gradfiltering.diagnostics.limits import DiagnosticLimits
from scripts.options_reference import PART_GROUPS, read_comments, read_docstring_arguments, write_options_page
from tests.support.pipeline import ROOT

CONF = ROOT / "conf"


@pytest.fixture(scope="module")
def page():
    return write_options_page()


@pytest.fixture(scope="module")
def rows(page):
    """Full name of each option -> its default, values and meaning."""
    return {
        cells[0].strip("`"): [cell.strip() for cell in cells[1:]]
        for line in page.splitlines()
        if line.startswith("| `") and (cells := [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    }


def leaves(node, place=""):
    for key, value in node.items():
        path = f"{place}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        elif not key.startswith("_"):
            yield path


def test_every_option_of_the_default_configuration_is_in_it(rows):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["run_dir=somewhere"])
    missing = set(leaves(OmegaConf.to_container(cfg, resolve=False))) - set(rows)
    assert not missing, sorted(missing)


@pytest.mark.parametrize("group", PART_GROUPS)
def test_every_choice_and_every_key_of_its_file_is_in_it(group, page, rows):
    names = {name.rpartition(".")[2] for name in rows}
    for file in (CONF / group).glob("*.yaml"):
        assert f"- `{group}={file.stem}`" in page
        content = {key: value for key, value in yaml.safe_load(file.read_text("utf-8")).items() if key != "defaults"}
        assert {path.rpartition(".")[2] for path in leaves(content)} <= names, file


@pytest.mark.parametrize("group", ["method", "experiment"])
def test_every_recipe_and_study_is_in_it(group, page):
    assert all(f"- `{group}={file.stem}`: " in page for file in (CONF / group).glob("*.yaml"))


def test_every_option_says_what_it_means(rows):
    assert not sorted(name for name, (*_, meaning) in rows.items() if not meaning)


def test_defaults_ranges_and_references_are_those_of_the_configuration(rows):
    assert rows["ensemble.m"][:2] == ["`5`", "a positive whole number or auto"]
    assert rows["ensemble.lr"][0] == "as `proxy.ensemble.lr`"
    assert "`0.0003` (smollm2)" in rows["proxy.ensemble.lr"][0]
    assert rows["until"][1] == "one of: proxy, score, select, target, judge, report"
    assert rows["selector.fraction"][2] and rows["data.path"][0] == "`null` (alpaca, alpaca_gpt4, hub); required (file)"


def test_comments_may_go_on_over_lines_and_nest():
    text = "a:\n  b: 1  # first\n         # second\n  c:\n    d: 2 # deep\ne: 3\n"
    assert dict(read_comments(text)) == {"a.b": "first second", "a.c.d": "deep"}


def test_docstrings_give_meanings_over_several_lines():
    meanings = read_docstring_arguments(DiagnosticLimits)
    assert meanings["negative_selected_share"].endswith("for scores whose sign has a meaning.")
