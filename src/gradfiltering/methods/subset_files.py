"""Files of a run folder about scores and the selected subset."""

from collections.abc import Mapping, Sequence

import numpy as np

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.examples import Examples
from gradfiltering.data.export import NATIVE, write_rows
from gradfiltering.data.training_formats import ExportSettings
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.scorers.base import Scores


def write_scores(run_folder: RunFolder, scores: Scores, unscored: Sequence[tuple[int, str]]) -> None:
    """Write `scores.parquet`, and `unscored.parquet` with the rows that got no score.

    Args:
        run_folder: of the run.
        scores: of the rows that could be scored.
        unscored: id and reason of each row of the dataset that the scorer did not see.
    """
    columns = {"example_id": scores.example_ids, "score": scores.score.astype(np.float64), "rank": scores.rank}
    run_folder.write_scores({**columns, **scores.columns})
    run_folder.write_unscored([*unscored, *scores.unscored])


def write_known_rows(run_folder: RunFolder, dataset: InstructionDataset, examples: Examples) -> None:
    """Write the files that need no score: `unscored.parquet`, and `truth.parquet` where the truth is known."""
    run_folder.write_unscored(examples.unscored)
    run_folder.write_truth(dataset.kinds)


def write_subset(
    run_folder: RunFolder,
    dataset: InstructionDataset,
    selected_ids: Sequence[int],
    scores: Scores | None,
    trace: Mapping[str, np.ndarray] | None = None,
    export: ExportSettings = NATIVE,
) -> None:
    """Write the selected rows as they came in, and `subset.parquet` with ids and scores.

    The rows go into `subset.jsonl` and a file of the input's own type, the selector's steps (its
    trace) into `selection.parquet`, and another format of export into a file of its own.
    """
    run_folder.write_files(write_rows, dataset, selected_ids, export)
    example_ids = np.asarray(selected_ids, dtype=np.int64)
    subset_scores = np.full(len(example_ids), np.nan)
    if scores is not None:
        scored = np.isin(example_ids, scores.example_ids)
        score_indices = np.searchsorted(scores.example_ids, example_ids[scored])
        subset_scores[scored] = scores.score[score_indices]
    run_folder.write_subset(example_ids, subset_scores)
    if trace:
        run_folder.write_selection(trace)
