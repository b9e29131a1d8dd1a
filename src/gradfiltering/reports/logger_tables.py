"""Small tables out of a run folder, for experiment loggers: rows with their text, verdicts, curves, costs."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradfiltering.data.row_texts import ROWS_FILE as ROWS
from gradfiltering.data.row_texts import replace_lone_surrogates
from gradfiltering.judging.responses import read_responses
from gradfiltering.judging.verdicts import read_verdicts

MOST_ROWS = 50  # from each end of the ranking
MOST_VERDICTS = 1000
MOST_CHARACTERS = 4000  # of one cell


@dataclass(frozen=True)
class Extract:
    """A table.

    Attributes:
        name: `stage/name`.
        columns: headings.
        rows: as many values each: text, numbers, truth values or None.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]


def extracts(run_dir: Path, summary: Mapping[str, Any]) -> list[Extract]:
    """Every table that the run's files allow, empty ones left out."""
    found = [
        *_ranking(run_dir),
        _verdicts(run_dir),
        _pws(summary.get("pws", {})),
        _curves(run_dir),
        _stages(summary),
        Extract("run/warnings", ["warning"], [[text] for text in summary.get("diagnostics", {}).get("warnings", [])]),
    ]
    return [one for one in found if one.rows]


def cell(text: str) -> str:
    """Text of one cell: what no encoder takes is replaced, and what is very long is cut and says so."""
    text = replace_lone_surrogates(text)
    if len(text) > MOST_CHARACTERS:
        return f"{text[:MOST_CHARACTERS]} … ({len(text):,} characters in all)"
    return text


def _ranking(run_dir: Path) -> list[Extract]:
    """The best and the worst rows with what was measured and what they say."""
    if not (run_dir / "scores.parquet").is_file():
        return []
    scores = pq.read_table(run_dir / "scores.parquet").sort_by("rank")
    subset = run_dir / "subset.parquet"
    chosen = set(pq.read_table(subset)["example_id"].to_pylist()) if subset.is_file() else set()
    texts = _texts(run_dir)
    kinds = pq.read_table(run_dir / "truth.parquet")["kind"] if (run_dir / "truth.parquet").is_file() else None
    count = min(MOST_ROWS, len(scores))
    extra = [name for name in scores.schema.names if name not in ("example_id", "rank", "score")]
    columns = ["rank", "example_id", "score", "chosen", *extra, *(["kind"] if kinds is not None else []), *texts]
    found = []
    for name, start in (("selection/top_rows", 0), ("selection/bottom_rows", len(scores) - count)):
        rows = []
        for row in scores.slice(start, count).to_pylist():
            number = row["example_id"]
            kind = [kinds[number].as_py()] if kinds is not None else []
            said = [None if text[number].as_py() is None else cell(text[number].as_py()) for text in texts.values()]
            values = [row[column] for column in extra]
            rows.append([row["rank"], number, row["score"], number in chosen, *values, *kind, *said])
        found.append(Extract(name, columns, rows))
    return found


def _texts(run_dir: Path) -> dict[str, pa.ChunkedArray]:
    """`source`, `prompt` and `response` of every row; a row's place is its id."""
    if not (run_dir / ROWS).is_file():
        return {}
    table = pq.read_table(run_dir / ROWS, columns=["source", "prompt", "response"])
    some = ["prompt", "response"] if pc.all(pc.is_null(table["source"])).as_py() else table.schema.names
    return {name: table[name] for name in some}


def _verdicts(run_dir: Path) -> Extract:
    columns = ["against", "prompt_set", "prompt_id", "verdict", "prompt", "candidate", "opponent", "scores",
               "scores_reverse", "reply", "reply_reverse", "judge", "repeat"]  # fmt: skip
    path = run_dir / "verdicts.jsonl"
    if not path.is_file():
        return Extract("judge/verdicts", columns, [])
    answers = {
        file.stem: {(one.prompt_set, one.prompt_id): one for one in read_responses(file)}
        for file in sorted((run_dir / "responses").glob("*.jsonl"))
    }
    rows = []
    for one in _spread(read_verdicts(path), MOST_VERDICTS):
        place = (one.prompt_set, one.prompt_id)
        own, other = (answers.get(name, {}).get(place) for name in (one.candidate, one.against))
        said = [cell(own.prompt) if own else None, *(cell(by.response) if by else None for by in (own, other))]
        scores = [None if pair is None else f"{pair[0]:g} {pair[1]:g}" for pair in (one.scores, one.scores_reverse)]
        replies = [cell(one.reply), cell(one.reply_reverse)]
        rows.append([one.against, *place, one.verdict, *said, *scores, *replies, one.judge, one.repeat])
    return Extract("judge/verdicts", columns, rows)


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, at even distance."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _pws(pws: Mapping[str, Any]) -> Extract:
    numbers = ["value", "low", "high", "wins", "ties", "losses", "unparsed"]
    rows = [
        [against, name, *(one.get(number) for number in numbers)]
        for against, sets in pws.items()
        for name, one in sets.items()
    ]
    return Extract("judge/pws", ["against", "prompt_set", *numbers], rows)


def read_curve(path: Path) -> list[dict[str, float | None]]:
    """Rows of a `curve.csv`, None where nothing was measured."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]


def _curves(run_dir: Path) -> Extract:
    columns, rows = ["model"], []
    for path in sorted(run_dir.glob("target/*/curve.csv")):
        curve = read_curve(path)
        columns = ["model", *curve[0]] if curve else columns
        rows += [[path.parent.name, *row.values()] for row in curve]
    return Extract("target/curves", columns, rows)


def _stages(summary: Mapping[str, Any]) -> Extract:
    costs = summary.get("cost", {})
    rows = [
        [one["name"], one["seconds"], one["reused"], costs.get(one["name"], {}).get("peak_bytes")]
        for one in summary.get("stages", [])
    ]
    return Extract("run/stages", ["stage", "seconds", "reused", "peak_bytes"], rows)


def write_csv(table: Extract, path: Path) -> None:
    """Writes the table; lists of Python values do not occur in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table.columns)
        writer.writerows(table.rows)


def markdown(table: Extract) -> str:
    """The table in Markdown; nothing in a cell is read as markup."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_plain(value) for value in line) + " |" for line in lines)


def _plain(value: Any) -> str:
    """A value as one line of Markdown in which every character stands for itself."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if not isinstance(value, str) or value == "---":
        return "" if value is None else json.dumps(value)
    safe = "".join(f"&#{ord(char)};" if char in "<>&|`*_[]()#!\\~\"'" else char for char in value)
    return safe.replace("\r\n", "<br>").replace("\n", "<br>").replace("\r", "<br>")
