"""How to repeat a run, and whom to cite."""

import yaml

from gradfiltering.reports.page import provenance
from gradfiltering.reports.references import format_bibtex
from gradfiltering.reports.run_files import RunFiles
from tests.reports.page.runs import add_summary


def test_every_option_is_listed_by_its_path(bare):
    options = provenance.list_options(RunFiles(bare))["value"]
    assert options["selector.fraction"] == "0.25" and options["epochs.late"] == "2"


def bibtex_of(run):
    return format_bibtex(run.config, run.summary)


def with_config(folder, config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return RunFiles(folder)


def test_the_command_repeats_what_was_asked_for_with_its_seed(bare):
    lines = provenance.format_command(RunFiles(bare)).splitlines()
    assert lines == ["git checkout " + "0" * 40, "python train.py data=file 'data.path=a b.jsonl' seed=3"]


def test_facts_name_the_data_by_its_fingerprint(bare):
    found = provenance.list_facts(RunFiles(bare))["value"]
    assert len(found["fingerprint of the data"]) == 32 and found["data"] == "rows of a test"
    assert found["commit"].endswith("with local changes")


def test_facts_name_the_template_of_each_model(bare):
    assert provenance.list_facts(RunFiles(bare))["value"]["prompt template"] == "not noted"
    add_summary(bare, templates={"proxy": "roles", "target": "verbatim"})
    assert provenance.list_facts(RunFiles(bare))["value"]["prompt template"] == (
        "proxy: a plain layout of roles, since the model has no chat template that serves; target: verbatim"
    )


def test_each_method_used_is_cited_once(whole, bare):
    found = bibtex_of(RunFiles(whole))
    keys = [line.split("{")[1].rstrip(",") for line in found.splitlines() if line.startswith("@")]
    assert keys == ["yuan2026gradfiltering", "hu2022lora", "radford2019gpt2", "efron1993bootstrap"]
    assert "lora," not in bibtex_of(RunFiles(bare)), "nothing was trained"


def test_scorers_and_selectors_bring_their_papers(bare):
    config = yaml.safe_load((bare / "config.yaml").read_text())
    config["scorer"] = {"_target_": "gradfiltering.scorers.ifd.IFD", "ratio": "loss"}
    config["selector"] = {"_target_": "gradfiltering.selectors.spice.SpiceSelector"}
    config["data"]["name"] = "vicgalle/alpaca-gpt4"
    add_summary(bare, selection={"scorer": "ifd_loss", "selector": "spice"})
    found = bibtex_of(with_config(bare, config))
    assert "{li2024quantity," in found and "{chang2026spice," in found and "{li2024superfiltering," not in found
    assert "{peng2023alpacagpt4," in found and "{taori2023alpaca," not in found
