"""Small tables out of a run folder for experiment loggers: rows with their text, verdicts, curves, costs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.verdict import read_verdict
from gradfiltering.reports.verdict_lines import format_command_time
from gradfiltering.runs.plain_text import replace_lone_surrogates

RANKED_ROWS = 50  # from each end of the ranking
MOST_VERDICTS = 1000
MOST_CHARACTERS = 4000  # of a cell
SCORE_COLUMNS = ["rank", "example_id", "score", "selected"]
SCORE_NUMBERS = ("value", "low", "high", "wins", "ties", "losses", "unparsed")
MARKUP = re.compile(r"[<>&|`*_\[\]()#!\\~\"']")


def build_logger_tables(run_files: RunFiles) -> dict[str, pd.DataFrame]:
    """Build every table that the run's files allow by its name `stage/name`, empty ones left out."""
    logger_tables = {
        **_build_rankings(run_files),
        "run/verdict": _build_verdict(run_files),
        "judge/verdicts": _build_verdicts(run_files),
        "judge/pws": _build_winning_scores(run_files.pairwise_scores),
        "target/curves": _build_curves(run_files),
        "run/stages": _build_stages(run_files),
        "run/warnings": pd.DataFrame({"warning": run_files.warnings}),
    }
    return {name: table for name, table in logger_tables.items() if len(table)}


def shorten_text(text: str | None) -> str | None:
    """Shorten a very long text, which then says so, and replace characters that no encoder takes."""
    if text is None:
        return None
    text = replace_lone_surrogates(text)
    if len(text) > MOST_CHARACTERS:
        return f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters in all)"
    return text


def _build_rankings(run_files: RunFiles) -> dict[str, pd.DataFrame]:
    """Build the tables of the best and the worst rows with their measurements and text."""
    if run_files.scores is None:
        return {}
    ranked_rows = run_files.scores.sort_values("rank", ignore_index=True)
    ranked_rows["selected"] = ranked_rows["example_id"].isin(
        [] if run_files.selected_ids is None else run_files.selected_ids
    )
    ranked_rows = ranked_rows[[*SCORE_COLUMNS, *(name for name in ranked_rows if name not in SCORE_COLUMNS)]]
    return {
        "selection/top_rows": _add_texts(ranked_rows.head(RANKED_ROWS), run_files),
        "selection/bottom_rows": _add_texts(ranked_rows.tail(RANKED_ROWS), run_files),
    }


def _add_texts(shown_rows: pd.DataFrame, run_files: RunFiles) -> pd.DataFrame:
    shown_rows = shown_rows.reset_index(drop=True)
    if run_files.planted_kinds is not None:
        shown_rows["kind"] = [run_files.planted_kinds[row_id] for row_id in shown_rows["example_id"]]
    if run_files.row_texts is not None:
        row_texts = run_files.row_texts.loc[shown_rows["example_id"]]
        has_sources = run_files.row_texts["source"].notna().any()
        text_columns = ["source", "prompt", "response"] if has_sources else ["prompt", "response"]
        for name in text_columns:
            shown_rows[name] = [shorten_text(text) for text in row_texts[name].astype(object).tolist()]
    return shown_rows


def _build_verdict(run_files: RunFiles) -> pd.DataFrame:
    """Build the table of the run's verdict: one line."""
    verdict = read_verdict(run_files)
    time_words = format_command_time(verdict)
    columns = {
        "verdict": verdict["verdict"],
        "why": "; ".join(verdict["reasons"]),
        "seeds": verdict["seeds"],
        "to settle it": verdict["command"],
        "time": time_words,
    }
    return pd.DataFrame([columns])


def _build_verdicts(run_files: RunFiles) -> pd.DataFrame:
    if run_files.verdicts is None:
        return pd.DataFrame()
    shown_verdicts = run_files.verdicts
    if len(shown_verdicts) > MOST_VERDICTS:  # at even distance
        shown_verdicts = shown_verdicts.iloc[np.linspace(0, len(shown_verdicts) - 1, MOST_VERDICTS).round().astype(int)]
    answers_by_model = {
        model: {(answer["prompt_set"], answer["prompt_id"]): answer for answer in answers.to_dict(orient="records")}
        for model, answers in run_files.responses.items()
    }
    lines = []
    for verdict_record in shown_verdicts.to_dict(orient="records"):
        prompt = (verdict_record["prompt_set"], verdict_record["prompt_id"])
        candidate, baseline = (
            answers_by_model.get(verdict_record[role], {}).get(prompt, {}) for role in ("candidate", "against")
        )
        line = {name: verdict_record[name] for name in ("against", "prompt_set", "prompt_id", "verdict")}
        line["prompt"] = shorten_text(candidate.get("prompt"))
        line["candidate"] = shorten_text(candidate.get("response"))
        line["baseline"] = shorten_text(baseline.get("response"))
        for name in ("scores", "scores_reverse"):
            pair = verdict_record[name]
            line[name] = f"{pair[0]:g} {pair[1]:g}" if isinstance(pair, list) else None
        line |= {name: shorten_text(verdict_record[name]) for name in ("reply", "reply_reverse")}
        lines.append(line | {name: verdict_record[name] for name in ("judge", "repeat")})
    return pd.DataFrame(lines)


def _build_winning_scores(winning_scores: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"against": baseline, "prompt_set": prompt_set} | {name: score.get(name) for name in SCORE_NUMBERS}
            for baseline, sets in winning_scores.items()
            for prompt_set, score in sets.items()
        ]
    )


def _build_curves(run_files: RunFiles) -> pd.DataFrame:
    if not run_files.curves:
        return pd.DataFrame()
    return (
        pd.concat(dict(sorted(run_files.curves.items())), names=["model"]).reset_index("model").reset_index(drop=True)
    )


def _build_stages(run_files: RunFiles) -> pd.DataFrame:
    stage_table = pd.DataFrame(run_files.stages)
    if stage_table.empty:
        return stage_table
    stage_costs = run_files.summary.get("cost", {})
    stage_table["peak_bytes"] = [stage_costs.get(name, {}).get("peak_bytes") for name in stage_table["name"]]
    return stage_table.rename(columns={"name": "stage"})[["stage", "seconds", "reused", "peak_bytes"]]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Cells with a carriage return are quoted where lines end in one, and break in two where they do not.
    table.to_csv(path, index=False, lineterminator="\r\n")


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown; no text in a cell is read as markup."""
    return table.map(_format_markdown).to_markdown(index=False, disable_numparse=True)


def _format_markdown(value: Any) -> str:
    if isinstance(value, str):
        return re.sub(r"\r\n|\n|\r", "<br>", MARKUP.sub(lambda match: f"&#{ord(match[0])};", value))
    if value is None or value != value:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
