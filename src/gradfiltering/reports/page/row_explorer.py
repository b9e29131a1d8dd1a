"""The rows in the page's table of rows: a sample of them, their numbers and their text."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfiltering.reports.page.charts import round_number
from gradfiltering.reports.page.row_measurements import RowMeasurements
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.seeding import numpy_rng

CHARACTERS_PER_ROW = 500
PROMPT_SHARE = 2 / 3  # of the characters of the page, where responses would take more than the rest
TEXT_COLUMNS = ("prompt", "response")
ALL_ROWS = "all"
COLUMN_TITLES = {
    "score": "score",
    "rank": "rank",
    "g_early": "G_s",
    "g_late": "G_t",
    "relative_drop": "drop",
    "variance_late": "V_t",
    "length": "length",
}
WHOLE_NUMBERS = ("rank", "length")


@dataclass(frozen=True)
class RowSample:
    """The rows that a page holds.

    Attributes:
        example_ids: [K] int64, ascending.
        part_counts: number of rows by the reason for which they were taken; empty where all rows are there.
        longest_texts: longest prompt and longest response in characters, None for no limit. Prompts stay whole as long
            as they leave a third of the page to the responses.
    """

    example_ids: np.ndarray
    part_counts: dict[str, int]
    longest_texts: dict[str, int | None]


def sample_rows(run_files: RunFiles, measured_rows: RowMeasurements, row_limit: int | str) -> RowSample:
    """Take all rows, or the best, the worst, those at the cut and a random sample: at most `row_limit`, or `all`."""
    if row_limit == ALL_ROWS:
        return RowSample(measured_rows.row_ids, {}, dict.fromkeys(TEXT_COLUMNS))
    count = min(int(row_limit), len(measured_rows))
    part_counts: dict[str, int] = {}
    is_taken = np.full(len(measured_rows), count == len(measured_rows))

    def take_rows(part: str, positions: np.ndarray, most_rows: int) -> None:
        new_positions = positions[~is_taken[positions]][:most_rows]
        is_taken[new_positions] = True
        part_counts[part] = len(new_positions)

    if count < len(measured_rows):
        ranks = measured_rows.values("rank")
        best_first = np.argsort(ranks, kind="stable")[: np.isfinite(ranks).sum()]  # NaN comes last
        if len(best_first):
            take_rows("best", best_first, count // 4)
            take_rows("worst", best_first[::-1], count // 4)
            if measured_rows.selected is not None and not measured_rows.selected.all():
                selected_count = run_files.selection.get("selected", measured_rows.selected.sum())
                cut_distances = np.abs(ranks[best_first] - 1 - selected_count)
                take_rows("at the cut", best_first[np.argsort(cut_distances, kind="stable")], count // 4)
        rng = numpy_rng(run_files.seed, "rows shown")
        drawn_positions = rng.permutation(np.flatnonzero(measured_rows.is_drawn))
        take_rows("drawn at random", drawn_positions, count - int(is_taken.sum()))
    example_ids = measured_rows.row_ids[is_taken]
    longest_texts: dict[str, int | None] = dict.fromkeys(TEXT_COLUMNS)
    if run_files.row_texts is not None:
        row_texts = run_files.row_texts.loc[example_ids, list(TEXT_COLUMNS)].fillna("")
        lengths = {name: row_texts[name].str.len().to_numpy(dtype=np.int64) for name in TEXT_COLUMNS}
        budget = CHARACTERS_PER_ROW * max(count, 1)
        prompt_budget = max(budget * PROMPT_SHARE, budget - int(lengths["response"].sum()))
        longest_prompt = limit_text_length(lengths["prompt"], int(prompt_budget))
        prompt_characters = int(np.minimum(lengths["prompt"], longest_prompt or np.inf).sum())
        longest_response = limit_text_length(lengths["response"], budget - prompt_characters)
        longest_texts = {"prompt": longest_prompt, "response": longest_response}
    return RowSample(example_ids, part_counts, longest_texts)


def limit_text_length(text_lengths: np.ndarray, budget: int) -> int | None:
    """Find the largest limit under which the cut lengths add up to the budget; None where no text need be cut."""
    if text_lengths.sum() <= budget:
        return None
    ordered_lengths = np.sort(text_lengths)
    # With the K shortest whole and the others cut to equal length: which length spends the budget?
    remainder = budget - np.concatenate([[0], np.cumsum(ordered_lengths)[:-1]])
    equal_length = remainder / np.arange(len(ordered_lengths), 0, -1)
    return max(1, int(equal_length[np.argmax(equal_length <= ordered_lengths)]))


def collect_row_data(
    run_files: RunFiles, measured_rows: RowMeasurements, sample: RowSample, reselected_share: np.ndarray | None
) -> dict[str, Any]:
    """Collect the columns that the page's script shows, ready for JSON.

    Args:
        run_files: for texts and the gradient log.
        measured_rows: all rows.
        sample: the rows to show.
        reselected_share: [N] share of resampled ensembles that select a row, NaN where unknown, or None.
    """
    row_ids = sample.example_ids
    positions = measured_rows.find_positions(row_ids)
    row_texts, cut_lengths = _collect_texts(run_files, sample)
    return {
        "id": row_ids.tolist(),
        "name": run_files.path.name,
        "subset_rows": run_files.selection.get("selected"),
        "selected_ids": None if run_files.selected_ids is None else run_files.selected_ids.tolist(),
        "selected": None if measured_rows.selected is None else measured_rows.selected[positions].astype(int).tolist(),
        **row_texts,
        "cut": cut_lengths,
        "numbers": _collect_number_columns(measured_rows, positions, reselected_share),
        "source": _index_names(measured_rows.sources, positions),
        "kind": _index_names(measured_rows.kinds, positions),
        "reason": {
            position: run_files.unscored_reasons[row_id]
            for position, row_id in enumerate(row_ids.tolist())
            if row_id in run_files.unscored_reasons
        },
        "signs": {
            position: ", ".join(run_files.hygiene_signs[row_id])
            for position, row_id in enumerate(row_ids.tolist())
            if row_id in run_files.hygiene_signs
        },
        "log": _collect_measurements(run_files, row_ids),
    }


def _collect_texts(run_files: RunFiles, sample: RowSample) -> tuple[dict[str, list[str | None]], dict[int, list[int]]]:
    """Collect prompts and responses, cut to the longest that the page holds.

    Returns:
        Column -> text of each row, None where the run left none; position of a row of which a text was cut ->
        characters of its whole prompt and its whole response, 0 for one that was not cut.
    """
    row_ids = sample.example_ids
    cut_lengths: dict[int, list[int]] = {}
    row_texts: dict[str, list[str | None]] = {}
    for column, name in enumerate(TEXT_COLUMNS):
        longest_text = sample.longest_texts[name]
        row_texts[name] = (
            [None] * len(row_ids) if run_files.row_texts is None else run_files.row_texts.loc[row_ids, name].tolist()
        )
        for position, text in enumerate(row_texts[name]):
            if text is not None and longest_text is not None and len(text) > longest_text:
                cut_lengths.setdefault(position, [0, 0])[column] = len(text)
                row_texts[name][position] = text[:longest_text]
    return row_texts, cut_lengths


def _collect_number_columns(
    measured_rows: RowMeasurements, positions: np.ndarray, reselected_share: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Collect title and values of each column of numbers that any row has.

    Args:
        measured_rows: all rows.
        positions: of the rows to show.
        reselected_share: see `collect_row_data`.
    """
    number_columns = {}
    for name, title in COLUMN_TITLES.items():
        values = measured_rows.values(name)
        if np.isfinite(values).any():
            shown_values: list[float | None] = [round_number(value) for value in values[positions].tolist()]
            if name in WHOLE_NUMBERS:
                shown_values = [None if np.isnan(value) else int(value) for value in values[positions]]
            number_columns[name] = {
                "title": measured_rows.length_unit if name == "length" else title,
                "values": shown_values,
            }
    if reselected_share is not None and np.isfinite(reselected_share).any():
        shares = [round_number(share) for share in reselected_share[positions].tolist()]
        number_columns["stability"] = {"title": "again in", "values": shares}
    return number_columns


def _index_names(row_names: list[str] | None, positions: np.ndarray) -> dict[str, Any] | None:
    if row_names is None:
        return None
    unique_names, name_indices = np.unique([row_names[position] for position in positions], return_inverse=True)
    return {"names": unique_names.tolist(), "indices": name_indices.tolist()}


def _collect_measurements(run_files: RunFiles, row_ids: np.ndarray) -> dict[str, Any] | None:
    """Collect norm and loss of each member and epoch: epochs x members numbers for each row, row after row."""
    if run_files.gradient_log is None:
        return None
    logged_snapshots = [run_files.gradient_log.epoch(epoch) for epoch in run_files.gradient_log.epochs]
    logged_ids = logged_snapshots[0].example_ids
    log_positions = np.minimum(np.searchsorted(logged_ids, row_ids), len(logged_ids) - 1)
    is_logged = logged_ids[log_positions] == row_ids
    gradient_log = run_files.gradient_log
    measurements: dict[str, Any] = {
        "members": gradient_log.members, "epochs": gradient_log.epochs, "unit": gradient_log.unit
    }  # fmt: skip
    for name, digits in (("grad_norm", 6), ("loss", 4)):  # the members' variance is a small difference of norms
        values = np.stack([getattr(snapshot, name)[:, log_positions] for snapshot in logged_snapshots])  # [E, M, K]
        values = np.where(is_logged, values, np.nan).astype(float).transpose(2, 0, 1)  # [K, E, M]
        measurements[name] = [round_number(value, digits) for value in values.ravel().tolist()]
    return measurements
