"""How to repeat a run, and whom to cite."""

import yaml
from tests.reports.page.runs import add_summary

from gradfiltering.reports.page import provenance
from gradfiltering.reports.page.folder import RunFolder


def test_only_what_differs_from_the_default_is_listed(bare):
    config = provenance.default_config()
    assert provenance.differences(with_config(bare, config)) == []
    config["ensemble"]["m"] = 7
    config["run_dir"] = "elsewhere"
    found = provenance.differences(with_config(bare, config))
    assert found == [("ensemble.m", "7", str(provenance.default_config()["ensemble"]["m"]))]


def with_config(folder, config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return RunFolder(folder)


def test_a_hydra_that_runs_is_left_as_it_was():
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(provenance.CHECKOUT / "conf"), version_base="1.3"):
        assert provenance.default_config()
        assert compose("train", overrides=["seed=5"]).seed == 5


def test_the_command_repeats_what_was_asked_for_with_its_seed(bare):
    lines = provenance.command(RunFolder(bare)).splitlines()
    assert lines == ["git checkout " + "0" * 40, "python train.py data=file 'data.path=a b.jsonl' seed=3"]


def test_facts_name_the_data_by_its_fingerprint(bare):
    found = dict(provenance.facts(RunFolder(bare)))
    assert len(found["fingerprint of the data"]) == 32 and found["data"] == "rows of a test"
    assert found["commit"].endswith("with local changes")


def test_each_method_used_is_cited_once(whole, bare):
    found = provenance.bibtex(RunFolder(whole))
    keys = [line.split("{")[1].rstrip(",") for line in found.splitlines() if line.startswith("@")]
    assert keys == ["yuan2026gradfiltering", "hu2022lora", "radford2019gpt2", "efron1993bootstrap"]
    assert "lora," not in provenance.bibtex(RunFolder(bare)), "nothing was trained"


def test_scorers_and_selectors_bring_their_papers(bare):
    config = yaml.safe_load((bare / "config.yaml").read_text())
    config["scorer"] = {"_target_": "gradfiltering.scorers.ifd.IFD", "ratio": "loss"}
    config["selector"] = {"_target_": "gradfiltering.selectors.spice.SpiceSelector"}
    config["data"]["name"] = "vicgalle/alpaca-gpt4"
    add_summary(bare, selection={"scorer": "ifd_loss", "selector": "spice"})
    found = provenance.bibtex(with_config(bare, config))
    assert "{li2024quantity," in found and "{chang2026spice," in found and "{li2024superfiltering," not in found
    assert "{peng2023alpacagpt4," in found and "{taori2023alpaca," not in found
