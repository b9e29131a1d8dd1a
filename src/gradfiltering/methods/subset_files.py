"""Files of a run folder about scores and the selected subset."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.dataset import InstructionDataset, write_truth
from gradfiltering.data.examples import Examples
from gradfiltering.data.export import write_rows
from gradfiltering.runs.cache import atomic_path
from gradfiltering.scorers.base import Scores


def write_scores(run_dir: Path, scores: Scores, unscored: Sequence[tuple[int, str]]) -> None:
    """Write `scores.parquet`, and `unscored.parquet` with the rows that got no score.

    Args:
        run_dir: the run folder.
        scores: of the rows that could be scored.
        unscored: id and reason of each row of the dataset that the scorer did not see.
    """
    columns = {
        "example_id": scores.example_ids,
        "score": scores.score.astype(np.float64),
        "rank": scores.rank,
    }
    with atomic_path(run_dir / "scores.parquet") as part:
        pq.write_table(pa.table({**columns, **scores.columns}), part)
    write_unscored(run_dir / "unscored.parquet", [*unscored, *scores.unscored])


def write_unscored(path: Path, unscored: list[tuple[int, str]]) -> None:
    """Write example id and reason of each row without a score."""
    schema = pa.schema([("example_id", pa.int64()), ("reason", pa.string())])
    rows = [{"example_id": example_id, "reason": reason} for example_id, reason in sorted(unscored)]
    with atomic_path(path) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)


def write_known_rows(run_dir: Path, dataset: InstructionDataset, examples: Examples) -> None:
    """Write the files that need no score: `unscored.parquet`, and `truth.parquet` if known."""
    write_unscored(run_dir / "unscored.parquet", examples.unscored)
    write_truth(run_dir / "truth.parquet", dataset.kinds)


def write_subset(
    run_dir: Path,
    dataset: InstructionDataset,
    selected_ids: Sequence[int],
    scores: Scores | None,
    trace: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the selected rows as they came in, and `subset.parquet` with ids and scores.

    The rows go into `subset.jsonl` and a file of the input's own type, the selector's steps (its
    trace) into `selection.parquet`.
    """
    write_rows(run_dir, dataset, selected_ids)
    example_ids = np.asarray(selected_ids, dtype=np.int64)
    subset_scores = np.full(len(example_ids), np.nan)
    if scores is not None:
        scored = np.isin(example_ids, scores.example_ids)
        rows = np.searchsorted(scores.example_ids, example_ids[scored])
        subset_scores[scored] = scores.score[rows]
    with atomic_path(run_dir / "subset.parquet") as part:
        pq.write_table(pa.table({"example_id": example_ids, "score": subset_scores}), part)
    if trace:
        with atomic_path(run_dir / "selection.parquet") as part:
            pq.write_table(pa.table(dict(trace)), part)
