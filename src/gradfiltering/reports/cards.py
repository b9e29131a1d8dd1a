"""Cards a run leaves for others: `README.md` for the subset as a dataset, and one for the adapter as a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gradfiltering.distributed.process_group import rank
from gradfiltering.reports.citations import bibtex
from gradfiltering.runs.cache import atomic_path
from gradfiltering.runs.yaml_files import read_yaml

CARD = "README.md"
TUNING = ("epochs", "batch_size", "lr", "schedule")
# The subset stays under the licence of the data it was taken from, which only its user knows.
LICENCE = {"license": "other", "license_name": "FILL-IN", "license_link": "FILL-IN"}
LICENCE_WORDS = (
    "**To be filled in before publishing.** The rows stay under the licence of the data they were taken from; a model "
    "also stays under that of its base. Replace `FILL-IN` above."
)
PROJECT = "[gradfiltering](https://arxiv.org/abs/2601.13697)"


def write_cards(run_dir: Path, summary: Mapping[str, Any]) -> None:
    """Writes the cards of what the run made: nothing without a subset; only the first process writes.

    Args:
        run_dir: the run folder, with `config.yaml` and `environment.json`.
        summary: the run's.
    """
    if rank() > 0 or "selection" not in summary:
        return
    config = read_yaml(run_dir / "config.yaml")
    about = json.loads((run_dir / "environment.json").read_text("utf-8"))
    _write(run_dir / CARD, dataset_card(config, summary, about))
    for name, result in summary.get("target", {}).items():
        adapter = run_dir / "target" / name / "adapter"
        if adapter.is_dir():
            described = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
            _write(adapter / CARD, model_card(name, result, described, config, summary, about))


def dataset_card(config: Mapping[str, Any], summary: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The subset's card: metadata, how it was chosen, what to know before trusting it, whom to cite."""
    chosen, data = summary["selection"], summary["data"]
    header = {
        **LICENCE,
        "pretty_name": f"{chosen['selected']} rows chosen by {_method(chosen)}",
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "data-selection", "gradfiltering"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "subset.jsonl"}]}],
    }
    parts = [
        f"# A subset for instruction tuning: {chosen['selected']} of {data['examples']} rows",
        f"Chosen by {_method(chosen)} with {PROJECT}. Every row has the fields it came with, in the input's order; "
        "`subset.parquet` holds each row's position there (`example_id`) and its score.",
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("json", data_files="subset.jsonl", split="train")\n```\n\n'
        "`dataset_info.json` describes the file for LLaMA-Factory.",
        "## How it was chosen\n\n" + _list(_how(config, summary, about)),
        "## Before you trust it\n\n" + _diagnostics(summary["diagnostics"]),
        *_comparison(summary),
        f"## Licence\n\n{LICENCE_WORDS}",
        *_citation(config, summary),
    ]
    return _front(header) + "\n\n".join(parts) + "\n"


def model_card(
    name: str,
    result: Mapping[str, Any],
    adapter: Mapping[str, Any],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    about: Mapping[str, Any],
) -> str:
    """The card of a LoRA adapter.

    Args:
        name: of the model: `candidate`, `full`, `random`, …
        result: its part of the summary.
        adapter: content of `adapter_config.json`.
        config: of the run.
        summary: of the run.
        about: content of `environment.json`.
    """
    base = adapter.get("base_model_name_or_path")
    header = {"library_name": "peft", "pipeline_tag": "text-generation", **LICENCE, "tags": ["lora", "gradfiltering"]}
    # The hub knows models by owner/name; a folder or a model trained from scratch has no page to link to.
    if base and base.count("/") == 1 and not base.startswith((".", "/")):
        header["base_model"] = base
    tuning = config.get("target", {}).get("tuning", {})
    rows = {
        "candidate": f"the subset chosen by {_method(summary['selection'])}",
        "full": "all rows that can be scored",
        "random": "a random subset of the same size",
    }.get(name, name)
    heldout = result.get("heldout_loss")
    facts = {
        "base": base or "a small model trained from scratch (target=tiny), kept in the run's store",
        "trained on": f"{rows}: {result['examples']} rows, {result['tokens']:,} tokens, {result['steps']} updates",
        "LoRA": f"rank {adapter.get('r')}, alpha {adapter.get('lora_alpha')}, modules "
        + ", ".join(f"`{one}`" for one in sorted(adapter.get("target_modules") or [])),
        "options": ", ".join(f"{key} {tuning[key]}" for key in TUNING if key in tuning),
        "prompt": f"template `{config.get('data', {}).get('template', 'auto')}`; loss on the response alone",
        "training loss at the end": f"{result['final_loss']:.4f} nats per response token",
        "held-out loss at the end": "not measured" if heldout is None else f"{heldout:.4f} nats per response token",
        "seed": about["seed"],
        "versions": ", ".join(f"{key} {value}" for key, value in about.get("packages", {}).items()),
    }
    model = base or "PATH-OF-THE-BASE-MODEL"
    parts = [
        f"# LoRA adapter `{name}`",
        f"Made with {PROJECT} to see what a subset of instruction data teaches. It is evidence for the subset, tuned "
        "and tested as said here and no further: no safety training, no other evaluation.",
        "## Use\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{model}")\n'
        'model = PeftModel.from_pretrained(model, "PATH-OR-NAME-OF-THIS-ADAPTER")\n```',
        "## How it was made\n\n" + _list(facts),
        *(_comparison(summary) if name == "candidate" else []),
        f"## Licence\n\n{LICENCE_WORDS}",
        *_citation(config, summary),
    ]
    return _front(header) + "\n\n".join(parts) + "\n"


def _how(config: Mapping[str, Any], summary: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    chosen, data = summary["selection"], summary["data"]
    facts = {
        "rows": f"{chosen['selected']} of {data['examples']} ({chosen['fraction']:.2%}); {data['unscored']} unscored",
        "scorer": f"`{chosen['scorer']}`" if chosen.get("scorer") else "none",
        "selector": f"`{chosen['selector']}`",
        "seed": about["seed"],
        "commit": about.get("git_commit") or "not known",
        "versions": ", ".join(f"{key} {value}" for key, value in about.get("packages", {}).items()),
    }
    if "proxy" in summary:
        pair = config.get("epochs", {})
        snapshots = f"epochs {pair.get('early')} and {pair.get('late')}"
        facts["proxy ensemble"] = f"{summary['proxy']['members']} LoRA members, gradients after {snapshots}"
    return facts


def _method(chosen: Mapping[str, Any]) -> str:
    return f"{chosen['scorer']} and {chosen['selector']}" if chosen.get("scorer") else f"selector {chosen['selector']}"


def _diagnostics(found: Mapping[str, Any]) -> str:
    words = {
        "positive_drop_share": "share of rows whose gradient norm fell",
        "median_relative_drop": "median relative fall of the norm",
        "member_agreement": "agreement of the members' rankings (Spearman)",
        "negative_selected_share": "share of negative scores among the chosen",
        "easiness": "loss of the subset under the bare proxy, over the pool's",
    }
    known = {words[name]: f"{found[name]:.3f}" for name in words if isinstance(found.get(name), int | float)}
    correlation = found.get("score_spearman", {}).get("response_tokens")
    if correlation is not None:
        known["Spearman of score and response length"] = f"{correlation:+.3f}"
    warnings = "\n".join(f"> **Warning:** {one}\n" for one in found.get("warnings", []))
    return f"{_list(known)}\n\n{warnings or 'No limit of a diagnostic was crossed.'}".strip()


def _comparison(summary: Mapping[str, Any]) -> list[str]:
    pws = summary.get("pws", {})
    if not pws:
        return []
    lines = ["| against | prompts | PWS (1 = on a par) | interval | win / tie / loss |", "|---|---|---:|---|---|"]
    for against, sets in pws.items():
        for name, one in sets.items():
            value, interval = "–", "–"
            if one["value"] is not None:
                value, interval = f"{one['value']:.3f}", f"{one['low']:.3f} – {one['high']:.3f}"
            counts = f"{one['wins']} / {one['ties']} / {one['losses']}"
            lines.append(f"| {against} | {name} | {value} | {interval} | {counts} |")
    intro = "A target tuned on the subset, held against others, judged pairwise in both orders:"
    return [f"## What came of training on it\n\n{intro}\n\n" + "\n".join(lines)]


def _citation(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    found = bibtex(config, summary)
    return [f"## Citation\n\n```bibtex\n{found}\n```"] if found else []


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items())


def _front(header: Mapping[str, Any]) -> str:
    return "---\n" + yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True) + "---\n\n"


def _write(path: Path, text: str) -> None:
    # The adapter's own card may be a hard link into the store: a new file takes its place, the store keeps its own.
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
