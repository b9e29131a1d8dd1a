"""Tables of a sweep as the paper lays them out, and their LaTeX, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from gradfiltering.reports.sweep_jobs import DATASETS, SIZES, Job
from gradfiltering.runs.cache import atomic_path
from gradfiltering.statistics.winning_score import ALL_SETS

# arXiv 2601.13697: 2 datasets x 2 sizes x 3 fractions x 2 prompt sets, against the model tuned on all data.
PAPER_FRACTIONS = (0.05, 0.1, 0.15)
PAPER_SETS = {"wizardlm": "WizardLM", "vicuna": "Vicuna"}
PAPER_METHODS = {"random": "Random", "ifd": "Superfiltering", "gsnr": "GradFiltering"}
REFERENCE = "gsnr"
ALTERNATIVES = ("raw_drop", "normalized_drop", "variance_only")
RANDOM_SELECTOR = "selector random"
LATEX = {char: "\\" + char for char in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


@dataclass(frozen=True)
class SheetTable:
    """A table of text and numbers.

    Attributes:
        name: of its files.
        caption: what it shows.
        columns: headings.
        rows: as many cells each, None where a value is missing.
        labels: how many columns on the left are labels.
        note: what follows from it.
        signed: whether numbers are differences.
    """

    name: str
    caption: str
    columns: list[str]
    rows: list[list[str | float | None]]
    labels: int
    note: str = ""
    signed: bool = False

    def text(self, row: Sequence[str | float | None]) -> list[str]:
        """The cells of a row in words; a missing value is a dash, never a zero."""
        return [self._cell(value) for value in row]

    def markdown(self) -> str:
        """The table in Markdown."""
        sides = ["---" if place < self.labels else "---:" for place in range(len(self.columns))]
        body = [[_markdown(cell) for cell in self.text(row)] for row in self.rows]
        lines = [[_markdown(name) for name in self.columns], sides, *body]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        """The table for a paper, with the package booktabs."""
        sides = "l" * self.labels + "r" * (len(self.columns) - self.labels)
        lines = [" & ".join(map(_latex, cells)) + r" \\" for cells in (self.columns, *map(self.text, self.rows))]
        caption = _latex(f"{self.caption} {self.note}".strip())
        head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        head += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
        tail = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
        return "\n".join([*head, lines[0], r"\midrule", *lines[1:], *tail]) + "\n"

    def csv(self) -> str:
        """The table as CSV, numbers in full."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if value is None else value for value in row] for row in self.rows])
        return file.getvalue()

    def write(self, folder: Path) -> None:
        """Writes `<name>.tex`, `<name>.md` and `<name>.csv`."""
        for suffix, text in (("tex", self.latex()), ("md", self.markdown()), ("csv", self.csv())):
            with atomic_path(folder / f"{self.name}.{suffix}") as part:
                part.write_text(text, encoding="utf-8")

    def _cell(self, value: str | float | None) -> str:
        if value is None:
            return "–"
        if isinstance(value, str):
            return value
        return f"{value:+.3f}" if self.signed else f"{value:.3f}"


def main_table(jobs: Sequence[Job]) -> SheetTable | None:
    """The paper's 24 cases, or the same table of whatever cases a sweep of its methods has instead.

    Rows are dataset, target and method, columns fraction and prompt set; cells PWS against the model tuned on all data.

    Returns:
        None where the sweep has neither.
    """
    found: dict[tuple, list[float]] = {}
    for job in jobs:
        for name in job.summary.get("pws", {}).get("full", {}):
            value = _pws(job, "full", name)
            if name != ALL_SETS and value is not None and job.fraction is not None:
                key = (job.dataset, job.target, method_of(job), job.fraction, name)
                found.setdefault(key, []).append(value)
    papers = {key: values for key, values in found.items() if key[0] in DATASETS.values() and key[4] in PAPER_SETS}
    if papers:
        found, datasets, sets, fractions = papers, list(DATASETS.values()), list(PAPER_SETS), set(PAPER_FRACTIONS)
    elif set(PAPER_METHODS) <= {key[2] for key in found}:
        datasets, sets, fractions = sorted({key[0] for key in found}), sorted({key[4] for key in found}), set()
    else:
        return None
    targets = sorted({key[1] for key in found}, key=str.lower)
    if set(targets) <= set(SIZES.values()):
        targets = list(SIZES.values())
    others = sorted({key[2] for key in found} - set(PAPER_METHODS))
    methods = [*PAPER_METHODS, *others]
    fractions |= {key[3] for key in found}
    places = [(fraction, name) for name in sets for fraction in sorted(fractions)]

    def cell(*key: object) -> float | None:
        return fmean(found[key]) if key in found else None

    rows: list[list[str | float | None]] = [
        [data, target, PAPER_METHODS.get(method, method), *(cell(data, target, method, *place) for place in places)]
        for data in datasets
        for target in targets
        for method in methods
    ]
    cases = [(data, target, *place) for data in datasets for target in targets for place in places]
    compared = []
    for data, target, *place in cases:
        own, rivals = cell(data, target, REFERENCE, *place), [cell(data, target, m, *place) for m in ("random", "ifd")]
        if own is not None and None not in rivals:
            compared.append(all(own >= rival for rival in rivals if rival is not None))
    there = sum(cell(data, target, REFERENCE, *place) is not None for data, target, *place in cases)
    note = f"GradFiltering was measured in {there} of {len(cases)} cases"
    note += f"; it is at or above both rivals in {sum(compared)} of {len(compared)}." if compared else "."
    columns = [
        "data",
        "target",
        "method",
        *(f"{PAPER_SETS.get(name, name)} {fraction:.0%}" for fraction, name in places),
    ]
    caption = "Pairwise winning score against the model tuned on all data (1 = on a par)."
    return SheetTable("main", caption, columns, rows, 3, note)


def ablation_table(jobs: Sequence[Job], options: set[str]) -> SheetTable | None:
    """What each other score gains or loses against G-SNR in the same case, None where no case has both.

    Args:
        jobs: of the sweep.
        options: those that differ between jobs besides scorer, M and snapshots.
    """
    measured, caption = _measure(jobs)
    cases: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for job in jobs:
        for name, value in measured(job).items():
            members = "" if job.members is None else str(job.members)
            share = "" if job.fraction is None else f"{job.fraction:.0%}"
            case: tuple[str, ...] = (job.dataset, job.target, share, members, job.epochs or "", name, job.rest(options))
            cases.setdefault(case, {}).setdefault(method_of(job), []).append(value)
    whole = {case: values for case, values in cases.items() if REFERENCE in values and len(values) > 1}
    if not whole:
        return None
    names = {name for values in whole.values() for name in values} - {REFERENCE}
    methods = [*(name for name in ALTERNATIVES if name in names), *sorted(names - set(ALTERNATIVES))]
    headings = ("data", "target", "rows", "M", "snapshots", "prompts", "options")
    shown = [place for place in range(len(headings)) if len({case[place] for case in whole}) > 1]
    shown = shown or [0]
    rows: list[list[str | float | None]] = []
    for case, values in whole.items():
        own = fmean(values[REFERENCE])
        deltas = [fmean(values[name]) - own if name in values else None for name in methods]
        rows.append([*(case[place] for place in shown), f"{own:.3f}", *deltas])
    means: list[str | float | None] = []
    for place in range(len(methods)):
        column = [row[len(shown) + 1 + place] for row in rows]
        means.append(_mean([value for value in column if isinstance(value, float)]))
    if len(rows) > 1:
        rows.append(["mean", *[""] * (len(shown) - 1), "", *means])
    columns = [*(headings[place] for place in shown), "G-SNR", *(f"Δ {name}" for name in methods)]
    return SheetTable("ablation", caption, columns, rows, len(shown), signed=True)


def _measure(jobs: Sequence[Job]) -> tuple[Callable[[Job], dict[str, float]], str]:
    """What the ablation compares, as values by prompt set of a job, and its caption."""
    for against in ("full", "random"):
        if any(job.summary.get("pws", {}).get(against) for job in jobs):
            caption = f"Pairwise winning score against {against} under G-SNR, and what another score adds to it."

            def scores(job: Job, against: str = against) -> dict[str, float]:
                sets = [name for name in job.summary.get("pws", {}).get(against, {}) if name != "all"]
                values = {name: _pws(job, against, name) for name in sets}
                return {name: value for name, value in values.items() if value is not None}

            return scores, caption

    def clean(job: Job) -> dict[str, float]:
        share = job.summary.get("diagnostics", {}).get("truth", {}).get("share", {})
        return {"": share["clean"]["selected"]} if "clean" in share else {}

    return clean, "Share of clean rows among the chosen under G-SNR, and what another score adds to it."


def _pws(job: Job, against: str, name: str) -> float | None:
    return job.summary.get("pws", {}).get(against, {}).get(name, {}).get("value")


def method_of(job: Job) -> str:
    """How a job's rows were chosen, in a word where it has one."""
    return "random" if job.method == RANDOM_SELECTOR else job.method


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _latex(text: str) -> str:
    # What is above Latin-1 is rare here; the dash and Delta have commands that every engine knows.
    escaped = "".join(LATEX.get(char, char) for char in text)
    return escaped.replace("–", "--").replace("Δ", r"$\Delta$").replace("\n", " ")


def _markdown(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text).replace("\n", " ")
