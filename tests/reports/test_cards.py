"""Cards: valid for the hub, true to the run; and what would be uploaded."""

import json
import os

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard

from gradfiltering.errors import UserError
from gradfiltering.reports.cards import write_cards
from scripts import push_subset
from tests.reports.folders import add_targets, write_run


@pytest.fixture
def folder(tmp_path):
    folder = write_run(tmp_path / "run")
    add_targets(folder)
    write_cards(folder)
    return folder


def test_the_subsets_card_is_a_dataset_card_that_loads_the_subset(folder):
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "other" and "data-selection" in card.data.tags
    files = card.data.to_dict()["configs"][0]["data_files"]
    assert files == [{"split": "train", "path": "subset.jsonl"}]
    rows = load_dataset("json", data_files=str(folder / files[0]["path"]), split="train", cache_dir=str(folder / "c"))
    assert len(rows) == 2
    for said in ("2 of 20 rows", "gsnr and top", "**seed**: 0", "the score follows length", "1.200", "@misc{yuan2026"):
        assert said in card.text


def test_the_adapters_card_replaces_the_template_and_is_true(folder):
    card = ModelCard.load(folder / "target" / "candidate" / "adapter" / "README.md")
    assert card.data.base_model == "meta-llama/Llama-2-7b-hf" and card.data.library_name == "peft"
    assert "Model Card for Model ID" not in card.text and "More Information Needed" not in card.text
    for said in ("2 rows, 90 tokens, 4 updates", "rank 8, alpha 16", "2.2500 nats", "1.5000 nats", "lr 0.003"):
        assert said in card.text
    full = (folder / "target" / "full" / "adapter" / "README.md").read_text("utf-8")
    assert "all rows that can be scored" in full and "Results of training" not in full


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        ("random_2", "a random subset of the same size"),
        ("random_3_same_updates", "a random subset of the same size"),
        ("full_same_updates", "all rows that can be scored"),
    ],
)
def test_a_baseline_is_described_whatever_its_draw_and_updates(tmp_path, model, rows):
    folder = write_run(tmp_path / "run")
    summary = add_targets(folder)
    (folder / "target" / "full").rename(folder / "target" / model)
    summary["target"][model] = summary["target"].pop("full")
    (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
    write_cards(folder)
    card = ModelCard.load(folder / "target" / model / "adapter" / "README.md")
    assert f"**trained on**: {rows}" in card.text


def test_a_base_that_is_no_model_of_the_hub_is_not_linked(tmp_path):
    folder = write_run(tmp_path / "run")
    add_targets(folder)
    path = folder / "target" / "candidate" / "adapter"
    about = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": None}))
    write_cards(folder)
    card = ModelCard.load(path / "README.md")
    assert card.data.base_model is None and "trained from scratch" in card.text


def test_the_stores_own_card_is_left_alone(folder, tmp_path):
    """The adapter's files may be hard links into the cache."""
    card, kept = folder / "target" / "candidate" / "adapter" / "README.md", tmp_path / "store.md"
    card.unlink()
    kept.write_text("the store's")
    os.link(kept, card)
    write_cards(folder)
    assert kept.read_text() == "the store's" and "LoRA adapter" in card.read_text()


def test_a_run_without_a_subset_has_no_card(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"data": {}, "diagnostics": {}}))
    write_cards(folder)
    assert not (folder / "README.md").exists()


def test_a_dry_run_lists_exactly_what_would_be_uploaded(folder, capsys):
    push_subset.main([str(folder), "--dataset", "me/subset", "--model", "me/adapter", "--dry-run"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [
        ["dataset", "me/subset"], ["model", "me/adapter"],
    ]  # fmt: skip
    listed = [line.split() for line in lines if line.startswith(" ")]
    assert [name for name, _ in listed] == [
        "README.md", "dataset_info.json", "subset.jsonl", "subset.parquet",
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert int(dict(listed[:4])["subset.jsonl"]) == (folder / "subset.jsonl").stat().st_size
    assert printed.err.count("not filled in") == 2


class Hub:
    """Stands where `HfApi` stands, with its calls' own signatures."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self.calls.append(("create", repo_id, repo_type, private))

    def upload_folder(self, *, repo_id, repo_type, folder_path, allow_patterns, commit_message):
        self.calls.append(("upload", repo_id, repo_type, allow_patterns))
        return f"https://hub/{repo_id}"


def test_the_upload_is_what_the_dry_run_listed_and_private(folder):
    for card in (folder / "README.md", folder / "target" / "candidate" / "adapter" / "README.md"):
        card.write_text(card.read_text("utf-8").replace("FILL-IN", "cc-by-4.0"), "utf-8")
    hub, uploads = Hub(), push_subset.plan_uploads(folder, "me/subset", "me/adapter")
    assert push_subset.push_uploads(uploads, hub, public=False) == ["https://hub/me/subset", "https://hub/me/adapter"]
    expected = [
        call
        for one in uploads
        for call in (("create", one.name, one.kind, True), ("upload", one.name, one.kind, one.files))
    ]
    assert hub.calls == expected


def test_nothing_is_published_before_the_licence_is_filled_in(folder):
    hub = Hub()
    with pytest.raises(UserError, match="FILL-IN"):
        push_subset.push_uploads(push_subset.plan_uploads(folder, "me/subset", None), hub, public=True)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("names", "said"), [(("a b", None), "no name of a repository"), ((None, None), "nothing to upload")]
)
def test_what_cannot_be_uploaded_is_refused(folder, names, said):
    with pytest.raises(UserError, match=said):
        push_subset.plan_uploads(folder, *names)
    with pytest.raises(UserError, match=r"subset\.jsonl"):
        push_subset.plan_uploads(folder / "none", "me/x", None)
