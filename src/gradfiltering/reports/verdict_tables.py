"""How far verdicts can be trusted, and which candidates of a sweep differ, as tables."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.judging.verdict_summary import read_outcomes
from gradfiltering.runs.cache import write_json
from gradfiltering.runs.yaml_files import read_yaml
from gradfiltering.statistics.paired_comparison import compare_candidates, correct_by_holm
from gradfiltering.statistics.winning_score import ALL_SETS

COMPARISONS_SHOWN = 10


def trust_table(pws: Mapping[str, Any], judge: Mapping[str, Any]) -> Table:
    """What stands behind the scores, a column an opponent.

    Args:
        pws: as in `summary.json`, by opponent and prompt set.
        judge: as in `summary.json`, by opponent.
    """
    table = Table("", title="How far to trust these verdicts", title_justify="left")
    for against in pws:
        table.add_column(Text(f"against {against}"), justify="right")
    pooled = [sets[ALL_SETS] for sets in pws.values()]
    found = [judge[against] for against in pws]
    rows: dict[str, Sequence[str]] = {
        "wins and losses by chance alone (sign test)": _sign_tests([one["sign_p"] for one in pooled]),
        "difference from 1 that 4 of 5 runs would find": [_number(one["detectable"]) for one in pooled],
        "PWS, were answers of like length": [_interval(one["length_controlled"]) for one in found],
        "longer answer wins": [_share(one["longer_wins_share"], one["decided"]) for one in found],
        "mean characters, candidate / opponent": [_lengths(one) for one in found],
        "orders contradict each other": [_share(one["contradiction_rate"], one["judged"]) for one in found],
        "answer shown first wins (even: 50 %)": [_share(one["first_slot_share"]) for one in found],
        "without a readable verdict": [_of(one) for one in pooled],
    }
    repeats = [one["repeats"] for one in found]
    if any(repeats):
        rows["same verdict in all repeats"] = [_repeats(one) for one in repeats]
        rows["PWS between repeats, standard deviation"] = [_number(one and one["pws_deviation"]) for one in repeats]
    for who in dict.fromkeys(name for one in found for name in _agreements(one)):
        rows[f"agreement of {who}"] = [_agreements(one).get(who, "–") for one in found]
    for label, cells in rows.items():
        table.add_row(Text(label), *cells)
    return table


def compare_jobs(folder: Path, jobs: Sequence[Path], console: Console) -> None:
    """Holds the candidates of a sweep against each other, where they were judged against the very same answers.

    Writes `comparisons.json` to the sweep's folder and prints the comparisons with the smallest p-values; does nothing
    where no two jobs can be compared.

    Args:
        folder: of the sweep.
        jobs: run folders.
        console: to print to.
    """
    found = {}
    for against, group in _comparable(jobs):
        judging = read_yaml(group[0] / "config.yaml")
        drawing = judging["judge"]["resamples"], judging["judge"]["confidence"], judging["seed"]
        outcomes = read_outcomes({job.name: job / "verdicts.jsonl" for job in group}, against)
        found[f"{against} ({', '.join(outcomes)})"] = compare_candidates(outcomes, *drawing)
    if not found:
        return
    write_json(folder / "comparisons.json", {name: [one.to_json() for one in some] for name, some in found.items()})
    for name, some in found.items():
        table = Table("jobs", "prompts", "PWS difference", "interval", "p", "p (Holm)", "could be found",
                      title=f"Candidates against {name}", title_justify="left")  # fmt: skip
        for one in sorted(some, key=lambda one: one.p)[:COMPARISONS_SHOWN]:
            interval = f"{one.low:+.3f} – {one.high:+.3f}"
            numbers = (interval, f"{one.p:.3g}", f"{one.p_holm:.3g}", _number(one.detectable))
            table.add_row(f"{one.first_name} – {one.second_name}", str(one.prompts), f"{one.difference:+.3f}", *numbers)
        console.print(table)
        if len(some) > COMPARISONS_SHOWN:
            console.print(f"  and {len(some) - COMPARISONS_SHOWN} more with larger p, in comparisons.json")


def _comparable(jobs: Sequence[Path]) -> list[tuple[str, list[Path]]]:
    """Opponents and the jobs, two at least, whose opponent of this name gave the same answers."""
    groups: dict[tuple[str, str], list[Path]] = {}
    for job in jobs:
        for file in sorted(job.glob("responses/*.jsonl")):
            if file.stem != "candidate" and (job / "verdicts.jsonl").is_file():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                groups.setdefault((file.stem, digest), []).append(job)
    return [(against, some) for (against, _), some in groups.items() if len(some) > 1]


def _agreements(found: Mapping[str, Any]) -> dict[str, str]:
    """Raters' and judges' agreement in words, by who agrees."""
    agreed = found["agreement"]
    said = {}
    for one in [*agreed["raters"], *agreed["judges"]]:
        kappa = "" if one["kappa"] is None else f", kappa {_ends(one['kappa'], one['kappa_low'], one['kappa_high'])}"
        said[", ".join(one["raters"])] = f"{one['share']:.1%} equal{kappa}"
    return said | {name: "no judgement of these answers in it" for name in agreed["not_found"]}


def _sign_tests(p_values: Sequence[float | None]) -> list[str]:
    """p-values, with several opponents also after Holm's correction."""
    known = [p for p in p_values if p is not None]
    corrected = iter(correct_by_holm(known))
    holms = [None if p is None else next(corrected) for p in p_values]
    return [
        "–" if p is None else f"p = {p:.3g}" + (f" (Holm {after:.3g})" if len(known) > 1 else "")
        for p, after in zip(p_values, holms, strict=True)
    ]


def _lengths(found: Mapping[str, Any]) -> str:
    mine, theirs = found["candidate_mean_length"], found["against_mean_length"]
    return "–" if mine is None or theirs is None else f"{mine:.0f} / {theirs:.0f}"


def _of(score: Mapping[str, Any]) -> str:
    total = score["wins"] + score["ties"] + score["losses"] + score["unparsed"]
    return f"{score['unparsed']} of {total}"


def _repeats(repeats: Mapping[str, Any] | None) -> str:
    return "–" if repeats is None else f"{repeats['same_verdict_share']:.1%} in {repeats['repeats']}"


def _share(value: float | None, total: int | None = None) -> str:
    return "–" if value is None else f"{value:.1%}" + ("" if total is None else f" of {total}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(one: Mapping[str, float] | None) -> str:
    return "–" if one is None else _ends(one["value"], one["low"], one["high"])


def _ends(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
