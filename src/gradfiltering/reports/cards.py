"""Cards that a run leaves for others: `README.md` for the subset as a dataset, and for each adapter as a model."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, DatasetCard, DatasetCardData, ModelCard, ModelCardData

from gradfiltering.reports.data_lines import (
    describe_heldout_loss,
    describe_proxy,
    find_loss_unit,
    find_snapshot_unit,
    learns_pairs,
)
from gradfiltering.reports.judge_lines import describe_judge, verdicts_are_usable
from gradfiltering.reports.number_formats import format_interval
from gradfiltering.reports.references import format_bibtex
from gradfiltering.reports.run_files import CANDIDATE, RunFiles
from gradfiltering.reports.verdict import read_verdict
from gradfiltering.reports.verdict_lines import format_command_time, format_verdict
from gradfiltering.runs.files import atomic_path
from gradfiltering.runs.run_folder import CARD_FILE

TUNING_OPTIONS = ("epochs", "batch_size", "lr", "schedule")
# The subset stays under the licence of the data it was taken from, which only its user knows.
LICENCE: dict[str, Any] = {"license": "other", "license_name": "FILL-IN", "license_link": "FILL-IN"}
LICENCE_WORDS = (
    "**To be filled in before publishing.** The rows stay under the licence of the data they were taken from; a model "
    "also stays under that of its base. Replace `FILL-IN` above."
)
PROJECT = "[gradfiltering](https://arxiv.org/abs/2601.13697)"
DIAGNOSTIC_WORDS = {
    "positive_drop_share": "share of rows whose gradient norm fell",
    "median_relative_drop": "median relative fall of the norm",
    "member_agreement": "agreement of the members' rankings (Spearman)",
    "negative_selected_share": "share of negative scores among the selected",
    "easiness": "loss of the subset under the base model, over the pool's",
}


def write_cards(run_dir: Path) -> None:
    """Write the cards of a run's subset and adapters, from its folder alone; nothing without a subset."""
    run_files = RunFiles(run_dir)
    if "selection" not in run_files.summary:
        return
    _write_card(run_dir / CARD_FILE, build_dataset_card(run_files))
    for model in run_files.target_results:
        adapter_folder = run_dir / "target" / model / "adapter"
        if adapter_folder.is_dir():
            adapter_config = json.loads((adapter_folder / "adapter_config.json").read_text("utf-8"))
            _write_card(adapter_folder / CARD_FILE, build_model_card(run_files, model, adapter_config))


def build_dataset_card(run_files: RunFiles) -> DatasetCard:
    """Build the subset's card: metadata, origin, diagnostics, comparison, references."""
    selection_summary, row_count = run_files.summary["selection"], run_files.summary["data"]["examples"]
    card_data = DatasetCardData(
        **LICENCE,
        pretty_name=f"{selection_summary['selected']} rows selected by {_format_method(selection_summary)}",
        task_categories=["text-generation"],
        tags=["instruction-tuning", "data-selection", "gradfiltering"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "subset.jsonl"}]}],
    )
    card_sections = [
        f"# A subset for instruction tuning: {selection_summary['selected']} of {row_count} rows",
        f"Selected by {_format_method(selection_summary)} with {PROJECT}. Every row has the fields it came with, in "
        "the input's order; `subset.parquet` holds each row's position there (`example_id`) and its score.",
        "## Use\n\n```python\nfrom datasets import load_dataset\n\n"
        'rows = load_dataset("json", data_files="subset.jsonl", split="train")\n```\n\n'
        "`dataset_info.json` describes the file for LLaMA-Factory, where that reads such rows.",
        _format_verdict_section(run_files),
        "## Selection\n\n" + _format_facts(_list_selection_facts(run_files)),
        "## Before you trust it\n\n" + _format_diagnostics(run_files.summary),
        *_compare_with_baselines(run_files),
        *_close_card(run_files),
    ]
    return DatasetCard(_join_sections(card_data, card_sections))


def build_model_card(run_files: RunFiles, model: str, adapter_config: Mapping[str, Any]) -> ModelCard:
    """Build the card of a LoRA adapter from the name of its model and its `adapter_config.json`."""
    target_result = run_files.target_results[model]
    base_model = adapter_config.get("base_model_name_or_path") or ""
    # The hub knows models by owner/name; a folder or a model trained from scratch has no page to link to.
    on_hub = base_model.count("/") == 1 and not base_model.startswith((".", "/"))
    card_data = ModelCardData(
        **LICENCE,
        base_model=base_model if on_hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "gradfiltering"],
    )
    tuning_options = run_files.options("target").get("tuning", {})
    training_rows = {
        CANDIDATE: f"the subset selected by {_format_method(run_files.summary['selection'])}",
        "full": "all rows that can be scored",
        "random": "a random subset of the same size",
        "subset": "the rows of the subset",
    }.get(re.sub(r"(_\d+)?(_same_updates)?$", "", model), model)
    heldout_loss, accuracy = target_result.get("heldout_loss"), target_result.get("heldout_accuracy")
    loss_unit = find_loss_unit(run_files.summary)
    modules = ", ".join(f"`{module}`" for module in sorted(adapter_config.get("target_modules") or []))
    card_facts = {
        "base": base_model or "a small model trained from scratch (target=tiny), kept in the run's cache",
        "trained on": f"{training_rows}: {target_result['examples']} rows, {target_result['tokens']:,} tokens, "
        f"{target_result['steps']} updates",
        "LoRA": f"rank {adapter_config.get('r')}, alpha {adapter_config.get('lora_alpha')}, modules {modules}",
        "options": ", ".join(f"{name} {tuning_options[name]}" for name in TUNING_OPTIONS if name in tuning_options),
        "prompt": f"template `{_target_template(run_files)}`; {_describe_objective(run_files)}",
        "training loss at the end": f"{target_result['final_loss']:.4f} {loss_unit}",
        "held-out loss at the end": "not measured" if heldout_loss is None else f"{heldout_loss:.4f} {loss_unit}",
        **({} if accuracy is None else {"held-out pairs ranked right": f"{accuracy:.1%} (reward accuracy)"}),
        "seed": run_files.seed,
        "versions": _format_versions(run_files),
    }
    card_sections = [
        f"# LoRA adapter `{model}`",
        f"Made with {PROJECT} to see what a subset of instruction data teaches. It is evidence for the subset, tuned "
        "and tested as described here and no further: no safety training, no other evaluation.",
        "## Use\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{base_model or "PATH-OF-THE-BASE-MODEL"}")\n'
        'model = PeftModel.from_pretrained(model, "PATH-OR-NAME-OF-THIS-ADAPTER")\n```',
        "## Training\n\n" + _format_facts(card_facts),
        *([_format_verdict_section(run_files)] if model == CANDIDATE else []),
        *(_compare_with_baselines(run_files) if model == CANDIDATE else []),
        *_close_card(run_files),
    ]
    return ModelCard(_join_sections(card_data, card_sections))


def _describe_objective(run_files: RunFiles) -> str:
    if learns_pairs(run_files.summary):
        return "DPO loss of the chosen against the rejected answer, with the base model as reference"
    return "loss on the response alone"


def _target_template(run_files: RunFiles) -> str:
    """Name the prompt template that the target was trained with, or the option where the run did not note it."""
    noted_templates = run_files.summary.get("templates", {})
    return str(noted_templates.get("target") or run_files.options("data").get("template", "not noted"))


def _list_selection_facts(run_files: RunFiles) -> dict[str, Any]:
    selection_summary, data_summary = run_files.summary["selection"], run_files.summary["data"]
    card_facts = {
        "rows": f"{selection_summary['selected']} of {data_summary['examples']} ({selection_summary['fraction']:.2%}); "
        f"{data_summary['unscored']} unscored",
        "scorer": f"`{selection_summary['scorer']}`" if selection_summary.get("scorer") else "none",
        "selector": f"`{selection_summary['selector']}`",
        "seed": run_files.seed,
        "commit": run_files.environment.get("git_commit") or "not known",
        "versions": _format_versions(run_files),
    }
    if "proxy" in run_files.summary:
        card_facts["proxy ensemble"] = (
            f"{run_files.summary['proxy']['members']} LoRA members, gradients after "
            f"{find_snapshot_unit(run_files.summary)}s {run_files.epochs.early} and {run_files.epochs.late}"
        )
    return card_facts


def _format_versions(run_files: RunFiles) -> str:
    return ", ".join(f"{name} {version}" for name, version in run_files.environment.get("packages", {}).items())


def _format_method(selection_summary: Mapping[str, Any]) -> str:
    if selection_summary.get("scorer"):
        return f"{selection_summary['scorer']} and {selection_summary['selector']}"
    return f"selector {selection_summary['selector']}"


def _format_diagnostics(run_summary: Mapping[str, Any]) -> str:
    diagnostics = run_summary["diagnostics"]
    proxy_lines = "".join(
        f"- {line}\n" for line in (describe_proxy(run_summary), describe_heldout_loss(run_summary)) if line
    )
    card_facts = {
        description: f"{diagnostics[name]:.3f}"
        for name, description in DIAGNOSTIC_WORDS.items()
        if isinstance(diagnostics.get(name), int | float)
    }
    length_correlation = diagnostics.get("score_spearman", {}).get("response_tokens")
    if length_correlation is not None:
        card_facts["Spearman of score and response length"] = f"{length_correlation:+.3f}"
    warning_quotes = "\n".join(f"> **Warning:** {warning_text}\n" for warning_text in diagnostics.get("warnings", []))
    warning_words = warning_quotes or "No limit of a diagnostic was crossed."
    return f"{proxy_lines}{_format_facts(card_facts)}\n\n{warning_words}".strip()


def _format_verdict_section(run_files: RunFiles) -> str:
    """Write the verdict, and the command that would settle it."""
    verdict = read_verdict(run_files)
    section = f"## Verdict\n\n**{format_verdict(verdict)}.**"
    if verdict["command"] is not None:
        section += f"\n\nTo settle it ({format_command_time(verdict)}):\n\n```sh\n{verdict['command']}\n```"
    return section


def _compare_with_baselines(run_files: RunFiles) -> list[str]:
    if not run_files.pairwise_scores:
        return []
    lines = ["| against | prompts | PWS (1 = on a par) | win / tie / loss |", "|---|---|---|---|"]
    for baseline, sets in run_files.pairwise_scores.items():
        for prompt_set, score in sets.items():
            counts = f"{score['wins']} / {score['ties']} / {score['losses']}"
            lines.append(f"| {baseline} | {prompt_set} | {format_interval(score)} | {counts} |")
    introduction = "A target tuned on the subset, compared with others, judged pairwise in both orders, with intervals:"
    judge_line = describe_judge(run_files.summary)
    if judge_line is not None:
        warning_mark = "" if verdicts_are_usable(run_files.summary) else "> **Warning:** "
        introduction = f"{warning_mark}{judge_line}.\n\n{introduction}"
    return [f"## Results of training on it\n\n{introduction}\n\n" + "\n".join(lines)]


def _close_card(run_files: RunFiles) -> list[str]:
    bibtex_text = format_bibtex(run_files.config, run_files.summary)
    citation_sections = [f"## Citation\n\n```bibtex\n{bibtex_text}\n```"] if bibtex_text else []
    return [f"## Licence\n\n{LICENCE_WORDS}", *citation_sections]


def _join_sections(card_data: CardData, card_sections: Sequence[str]) -> str:
    return f"---\n{card_data}\n---\n\n" + "\n\n".join(card_sections) + "\n"


def _format_facts(card_facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {value}" for name, value in card_facts.items())


def _write_card(path: Path, card_content: DatasetCard | ModelCard) -> None:
    # The adapter's card may be a hard link into the cache: a new file takes its place, the cache keeps its own.
    with atomic_path(path) as part:
        part.write_text(str(card_content), encoding="utf-8")
