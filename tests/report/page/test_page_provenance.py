"""How to repeat a run, and whom to cite."""

import yaml

from gradfiltering.report.page import provenance
from gradfiltering.report.page.folder import RunFolder


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
    assert keys == ["gradfiltering", "lora", "gpt2", "bootstrap"]
    assert "lora" not in provenance.bibtex(RunFolder(bare)), "nothing was trained"


def test_scorers_and_selectors_bring_their_papers(bare):
    config = yaml.safe_load((bare / "config.yaml").read_text())
    config["scorer"] = {"_target_": "gradfiltering.scorers.ifd.IFD", "ratio": "loss"}
    config["selector"] = {"_target_": "gradfiltering.selectors.spice.Spice"}
    config["data"]["name"] = "vicgalle/alpaca-gpt4"
    found = provenance.bibtex(with_config(bare, config))
    assert "{cherry," in found and "{spice," in found and "{superfiltering," not in found
    assert "{alpaca_gpt4," in found and "{alpaca," not in found


def test_every_cited_key_has_an_entry():
    text = (provenance.HERE / "methods.bib").read_text()
    cited = {*provenance.CITED.values(), *provenance.MODELS.values(), *provenance.DATASETS.values(), "gradfiltering"}
    assert all(f"{{{key}," in text for key in cited | {"lora", "cherry", "bootstrap"})
    assert text.count("{") == text.count("}") and "\n\n\n" not in text
