"""Tables on the trust that verdicts deserve, and on the differences between the candidates of a sweep."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.reports.number_formats import format_interval, format_number
from gradfiltering.reports.run_files import CANDIDATE
from gradfiltering.reports.sweep_jobs import NOT_KNOWN, SweepJob
from gradfiltering.runs.files import write_json
from gradfiltering.statistics.paired_comparison import compare_candidates, correct_by_holm
from gradfiltering.statistics.winning_score import ALL_SETS

COMPARISONS_PRINTED = 10
OUTCOME_VALUES = {"win": 1, "tie": 0, "loss": -1}


def build_trust_table(winning_scores: Mapping[str, Any], judge_behaviour: Mapping[str, Any]) -> Table:
    """Build the table of the evidence behind the winning scores: `pws` and `judge` of the summary, by baseline."""
    table = Table("", title="How far to trust these verdicts", title_justify="left")
    for baseline in winning_scores:
        table.add_column(Text(f"against {baseline}"), justify="right")
    pooled = [sets[ALL_SETS] for sets in winning_scores.values()]
    behaviours = [judge_behaviour[baseline] for baseline in winning_scores]
    table_rows: dict[str, Sequence[str]] = {
        "wins and losses by chance alone (sign test)": _format_sign_tests([score["sign_p"] for score in pooled]),
        "difference from 1 that 4 of 5 runs would find": [format_number(score["detectable"]) for score in pooled],
        "PWS, were answers of like length (tanh)": [
            format_interval(judged["length_controlled"]) for judged in behaviours
        ],
        "the same by the ratio of lengths": [
            format_interval(judged.get("length_controlled_log_ratio")) for judged in behaviours
        ],
        "longer answer wins": [_format_share(judged["longer_wins_share"], judged["decided"]) for judged in behaviours],
        "mean characters, candidate / baseline": [_format_lengths(judged) for judged in behaviours],
        "orders contradict each other": [
            _format_share(judged["contradiction_rate"], judged["judged"]) for judged in behaviours
        ],
        "answer shown first wins (even: 50 %)": [_format_share(judged["first_slot_share"]) for judged in behaviours],
        "without a readable verdict": [_format_unparsed(score) for score in pooled],
    }
    repeat_records = [judged["repeats"] for judged in behaviours]
    if any(repeat_records):
        table_rows["same verdict in all repeats"] = [_format_repeats(repeat) for repeat in repeat_records]
        table_rows["PWS between repeats, standard deviation"] = [
            format_number(repeat and repeat["pws_deviation"]) for repeat in repeat_records
        ]
    agreement_texts = [_format_agreements(judged["agreement"]) for judged in behaviours]
    for raters in dict.fromkeys(name for texts in agreement_texts for name in texts):
        table_rows[f"agreement of {raters}"] = [texts.get(raters, NOT_KNOWN) for texts in agreement_texts]
    for label, cells in table_rows.items():
        table.add_row(Text(label), *(Text(cell) for cell in cells))
    return table


def compare_jobs(folder: Path, sweep_jobs: Sequence[SweepJob], console: Console) -> None:
    """Compare the candidates of a sweep with each other, where they were judged against the very same answers.

    Writes `comparisons.json` to the sweep's folder and prints the comparisons with the smallest p-values; does nothing
    where no two jobs can be compared.
    """
    pair_comparisons = {}
    for baseline, job_group in _group_by_answers(sweep_jobs):
        job_outcomes = {sweep_job.name: read_outcomes(sweep_job, baseline) for sweep_job in job_group}
        judge_options = job_group[0].config["judge"]
        pair_comparisons[f"{baseline} ({', '.join(job_outcomes)})"] = compare_candidates(
            job_outcomes,
            resamples=judge_options["resamples"],
            confidence=judge_options["confidence"],
            seed=job_group[0].config["seed"],
        )
    if not pair_comparisons:
        return
    write_json(
        folder / "comparisons.json",
        {title: [pair.to_json() for pair in comparisons] for title, comparisons in pair_comparisons.items()},
    )
    for title, title_comparisons in pair_comparisons.items():
        table = Table(title=f"Candidates against {title}", title_justify="left")
        for heading in ("jobs", "prompts", "PWS difference", "interval", "p", "p (Holm)", "could be found"):
            table.add_column(heading)
        for pair in sorted(title_comparisons, key=lambda pair: pair.p)[:COMPARISONS_PRINTED]:
            table.add_row(
                f"{pair.first_name} – {pair.second_name}",
                str(pair.prompts),
                f"{pair.difference:+.3f}",
                f"{pair.low:+.3f} – {pair.high:+.3f}",
                f"{pair.p:.3g}",
                f"{pair.p_holm:.3g}",
                format_number(pair.detectable),
            )
        console.print(table)
        more_count = len(title_comparisons) - COMPARISONS_PRINTED
        if more_count > 0:
            console.print(f"  and {more_count} more with larger p, in comparisons.json")


def _group_by_answers(sweep_jobs: Sequence[SweepJob]) -> list[tuple[str, list[SweepJob]]]:
    """Group the jobs, two at least, whose baseline of a name gave the same answers."""
    job_groups: dict[tuple[str, str], list[SweepJob]] = {}
    for sweep_job in sweep_jobs:
        if sweep_job.verdicts is None or not sweep_job.has_usable_verdicts:
            continue
        for path in sorted(sweep_job.path.glob("responses/*.jsonl")):
            if path.stem != CANDIDATE:
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                job_groups.setdefault((path.stem, digest), []).append(sweep_job)
    return [(baseline, job_group) for (baseline, _), job_group in job_groups.items() if len(job_group) > 1]


def read_outcomes(sweep_job: SweepJob, baseline: str) -> dict[Hashable, int]:
    """Read the outcomes of a job's candidate by prompt, first judgings only."""
    assert sweep_job.verdicts is not None
    first_verdicts = sweep_job.verdicts.query("against == @baseline and repeat == 0")
    first_verdicts = first_verdicts[first_verdicts["verdict"].isin(list(OUTCOME_VALUES))]
    prompt_keys = zip(first_verdicts["prompt_set"], first_verdicts["prompt_id"], strict=True)
    return dict(zip(prompt_keys, first_verdicts["verdict"].map(OUTCOME_VALUES).tolist(), strict=True))


def _format_agreements(agreement_record: Mapping[str, Any]) -> dict[str, str]:
    """Format the raters' and judges' agreement by who agrees."""
    formatted_agreements = {}
    for pair in [*agreement_record["raters"], *agreement_record["judges"]]:
        kappa = ""
        if pair["kappa"] is not None:
            interval = {"value": pair["kappa"], "low": pair["kappa_low"], "high": pair["kappa_high"]}
            kappa = f", kappa {format_interval(interval)}"
        formatted_agreements[", ".join(pair["raters"])] = f"{pair['share']:.1%} equal{kappa}"
    return formatted_agreements | dict.fromkeys(agreement_record["not_found"], "no judgement of these answers in it")


def _format_sign_tests(p_values: Sequence[float | None]) -> list[str]:
    """Format p-values, with several baselines also after Holm's correction."""
    known_p_values = [p_value for p_value in p_values if p_value is not None]
    if len(known_p_values) < 2:
        return [NOT_KNOWN if p_value is None else f"p = {p_value:.3g}" for p_value in p_values]
    corrected = iter(correct_by_holm(known_p_values))
    return [NOT_KNOWN if p_value is None else f"p = {p_value:.3g} (Holm {next(corrected):.3g})" for p_value in p_values]


def _format_lengths(judge_behaviour: Mapping[str, Any]) -> str:
    mean_lengths = judge_behaviour["candidate_mean_length"], judge_behaviour["against_mean_length"]
    return NOT_KNOWN if None in mean_lengths else f"{mean_lengths[0]:.0f} / {mean_lengths[1]:.0f}"


def _format_unparsed(score: Mapping[str, Any]) -> str:
    return f"{score['unparsed']} of {score['wins'] + score['ties'] + score['losses'] + score['unparsed']}"


def _format_repeats(repeats: Mapping[str, Any] | None) -> str:
    return NOT_KNOWN if repeats is None else f"{repeats['same_verdict_share']:.1%} in {repeats['repeats']}"


def _format_share(share: float | None, total: int | None = None) -> str:
    return NOT_KNOWN if share is None else f"{share:.1%}" + ("" if total is None else f" of {total}")
