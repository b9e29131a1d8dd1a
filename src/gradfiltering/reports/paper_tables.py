"""Tables of a sweep as the paper lays them out, and their LaTeX, Markdown and CSV."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradfiltering.reports.sweep_jobs import DATASET_NAMES, MODEL_SIZES, NOT_KNOWN, SweepJob
from gradfiltering.runs.files import atomic_path, delete_symbolic_link
from gradfiltering.statistics.winning_score import ALL_SETS

# arXiv 2601.13697: 2 datasets x 2 sizes x 3 fractions x 2 prompt sets, against the model tuned on all data.
PAPER_FRACTIONS = (0.05, 0.1, 0.15)
PAPER_SETS = {"wizardlm": "WizardLM", "vicuna": "Vicuna"}
PAPER_METHODS = {"random": "Random", "ifd": "Superfiltering", "gsnr": "GradFiltering"}
REFERENCE = "gsnr"
ALTERNATIVES = ("raw_drop", "normalized_drop", "variance_only")
CASE_COLUMNS = ("data", "target", "rows", "M", "snapshots", "prompts", "options")


@dataclass(frozen=True)
class PaperTable:
    """A table of labels and numbers.

    Attributes:
        name: of its files.
        caption: describes it.
        table: label columns on the left, then numbers, NaN where a value is missing.
        label_count: number of label columns.
        note: conclusion from it.
        signed: whether numbers are differences.
    """

    name: str
    caption: str
    table: pd.DataFrame
    label_count: int
    note: str = ""
    signed: bool = False

    @property
    def formatted(self) -> pd.DataFrame:
        """The cells in words; a missing value is a dash, never a zero."""
        number_format = "{:+.3f}" if self.signed else "{:.3f}"

        def format_cell(cell: Any) -> str:
            if isinstance(cell, str):
                return cell
            return NOT_KNOWN if pd.isna(cell) else number_format.format(cell)

        return self.table.map(format_cell)

    def to_markdown(self) -> str:
        """Write the table in Markdown."""
        escaped = self.formatted.map(_escape_markdown).rename(columns=_escape_markdown)
        column_sides = ["left"] * self.label_count + ["right"] * (len(escaped.columns) - self.label_count)
        return escaped.to_markdown(index=False, disable_numparse=True, colalign=column_sides) + "\n"

    def to_latex(self) -> str:
        """Write the table for a paper, with the package booktabs."""
        column_sides = "l" * self.label_count + "r" * (len(self.table.columns) - self.label_count)
        caption = re.sub(r"([&%$#_{}])", r"\\\1", f"{self.caption} {self.note}".strip())
        text = self.formatted.to_latex(index=False, escape=True, column_format=column_sides, caption=caption)
        return text.replace("–", "--").replace("Δ", r"$\Delta$")

    def to_csv(self) -> str:
        """Write the table as CSV, numbers in full."""
        return self.table.to_csv(index=False, lineterminator="\n")

    def write(self, folder: Path) -> None:
        """Write `<name>.tex`, `<name>.md` and `<name>.csv`."""
        delete_symbolic_link(folder)
        for suffix, text in (("tex", self.to_latex()), ("md", self.to_markdown()), ("csv", self.to_csv())):
            with atomic_path(folder / f"{self.name}.{suffix}") as part:
                part.write_text(text, encoding="utf-8")


def build_main_table(sweep_jobs: Sequence[SweepJob]) -> PaperTable | None:
    """Build the table of the paper's 24 cases, or of whatever cases a sweep of its methods has instead.

    Rows are dataset, target and method, columns prompt set and fraction; cells PWS against the model tuned on all data.

    Returns:
        None where the sweep has neither.
    """
    lines = [
        (sweep_job.dataset, sweep_job.target_model, sweep_job.method, prompt_set, sweep_job.fraction, value)
        for sweep_job in sweep_jobs
        for prompt_set, value in sweep_job.winning_scores("full").items()
        if prompt_set != ALL_SETS and sweep_job.fraction is not None
    ]
    scores = pd.DataFrame(lines, columns=["data", "target", "method", "prompts", "fraction", "value"])
    paper_scores = scores[scores["data"].isin(DATASET_NAMES.values()) & scores["prompts"].isin(list(PAPER_SETS))]
    if len(paper_scores):
        scores, dataset_names, prompt_sets = paper_scores, list(DATASET_NAMES.values()), list(PAPER_SETS)
        subset_fractions = sorted({*PAPER_FRACTIONS, *scores["fraction"]})
    elif set(PAPER_METHODS) <= set(scores["method"]):
        dataset_names, prompt_sets = sorted(set(scores["data"])), sorted(set(scores["prompts"]))
        subset_fractions = sorted(set(scores["fraction"]))
    else:
        return None
    target_names = sorted(set(scores["target"]), key=str.lower)
    if set(target_names) <= set(MODEL_SIZES.values()):
        target_names = list(MODEL_SIZES.values())
    method_names = [*PAPER_METHODS, *sorted(set(scores["method"]) - set(PAPER_METHODS))]
    table = scores.pivot_table(index=["data", "target", "method"], columns=["prompts", "fraction"], values="value")
    row_index = pd.MultiIndex.from_product([dataset_names, target_names, method_names], names=table.index.names)
    table = table.reindex(index=row_index, columns=pd.MultiIndex.from_product([prompt_sets, subset_fractions]))
    candidate = table.xs(REFERENCE, level="method")
    is_compared = candidate.notna()
    is_beaten = is_compared.copy()
    for rival_method in ("random", "ifd"):
        rival_scores = table.xs(rival_method, level="method")
        is_compared &= rival_scores.notna()
        is_beaten &= candidate >= rival_scores
    note = f"GradFiltering was measured in {int(candidate.notna().to_numpy().sum())} of {candidate.size} cases"
    compared_count, beaten_count = int(is_compared.to_numpy().sum()), int((is_beaten & is_compared).to_numpy().sum())
    if compared_count:
        note += f"; it is at or above both rivals in {beaten_count} of {compared_count}"
    cases: list[Any] = list(table.columns)
    table.columns = [f"{PAPER_SETS.get(prompt_set, prompt_set)} {fraction:.0%}" for prompt_set, fraction in cases]
    table = table.reset_index().replace({"method": PAPER_METHODS})
    caption = "Pairwise winning score against the model tuned on all data (1 = on a par)."
    return PaperTable("main", caption, table, label_count=3, note=note + ".")


def build_ablation_table(sweep_jobs: Sequence[SweepJob], varying_options: set[str]) -> PaperTable | None:
    """Build the table of differences between G-SNR and each other score in the same case; None where none has both.

    `varying_options` differ between jobs besides scorer, M and snapshots.
    """
    judged_against = [name for name in ("full", "random") if any(job.winning_scores(name) for job in sweep_jobs)]
    baseline = judged_against[0] if judged_against else None
    lines = []
    for sweep_job in sweep_jobs:
        fraction_text = "" if sweep_job.fraction is None else f"{sweep_job.fraction:.0%}"
        for prompt_set, value in _measure_ablation(sweep_job, baseline).items():
            subset = (sweep_job.dataset, sweep_job.target_model, fraction_text)
            ensemble = (sweep_job.member_count, sweep_job.epoch_pair)
            other_options = sweep_job.other_options(varying_options)
            lines.append((*subset, *ensemble, prompt_set, other_options, sweep_job.method, value))
    scores = pd.DataFrame(lines, columns=[*CASE_COLUMNS, "method", "value"])
    if REFERENCE not in set(scores["method"]):
        return None
    table = scores.pivot_table(index=list(CASE_COLUMNS), columns="method", values="value", sort=False)
    table = table[table[REFERENCE].notna() & (table.notna().sum(axis=1) > 1)].dropna(axis=1, how="all")
    if table.empty:
        return None
    other_methods = set(table.columns) - {REFERENCE}
    method_names = [name for name in ALTERNATIVES if name in other_methods] + sorted(other_methods - set(ALTERNATIVES))
    reference_scores = table[REFERENCE]
    score_deltas = table[method_names].sub(reference_scores, axis=0).rename(columns=lambda name: f"Δ {name}")
    label_columns = table.index.to_frame(index=False)
    varying_columns = [name for name in CASE_COLUMNS if label_columns[name].nunique() > 1] or [CASE_COLUMNS[0]]
    label_columns = label_columns[varying_columns].assign(**{"G-SNR": [f"{value:.3f}" for value in reference_scores]})
    table = pd.concat([label_columns, score_deltas.reset_index(drop=True)], axis=1)
    if len(table) > 1:
        mean_labels = {name: "" for name in label_columns} | {varying_columns[0]: "mean"}
        table.loc[len(table)] = mean_labels | score_deltas.mean().to_dict()
    measure = f"Pairwise winning score against {baseline}" if baseline else "Share of clean rows among the selected"
    caption = f"{measure} under G-SNR, and what another score adds to it."
    return PaperTable("ablation", caption, table, label_count=len(varying_columns), signed=True)


def _measure_ablation(sweep_job: SweepJob, baseline: str | None) -> dict[str, float]:
    """Measure a job by its winning scores or, without any, by the share of clean rows among the selected."""
    if baseline is not None:
        return {name: value for name, value in sweep_job.winning_scores(baseline).items() if name != ALL_SETS}
    shares = sweep_job.diagnostics.get("truth", {}).get("share", {})
    return {"": shares["clean"]["selected"]} if "clean" in shares else {}


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")
