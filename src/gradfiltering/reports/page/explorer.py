"""The rows that the page holds: which ones, their numbers and their text."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gradfiltering.reports.page.charts import short_numbers
from gradfiltering.reports.page.folder import RunFolder
from gradfiltering.reports.page.table import RowTable
from gradfiltering.seeding import numpy_rng

CHARACTERS_A_ROW = 500


@dataclass(frozen=True)
class Sample:
    """The rows a page holds.

    Attributes:
        example_ids: [K] int64, ascending.
        parts: how many came in as what, for the words on the page; empty where all rows are there.
        clip: longest prompt or response in characters, None for no limit.
    """

    example_ids: np.ndarray
    parts: dict[str, int]
    clip: int | None


def sample(run: RunFolder, rows: RowTable, most: int | str, seed: int) -> Sample:
    """All rows, or the best, the worst, those at the cut and a random sample.

    Args:
        run: for the lengths of texts.
        rows: all rows.
        most: how many, or `all`.
        seed: of the random sample.
    """
    total = len(rows)
    if most == "all":
        return Sample(np.arange(total), {}, None)
    count = min(int(most), total)
    parts: dict[str, int] = {}
    taken = np.zeros(total, bool)

    def take(name: str, ids: np.ndarray, wanted: int) -> None:
        fresh = ids[~taken[ids]][:wanted]
        taken[fresh] = True
        parts[name] = len(fresh)

    if count < total:
        order = np.argsort(np.where(np.isfinite(rows.rank), rows.rank, np.inf), kind="stable")
        order = order[np.isfinite(rows.rank[order])]
        if len(order):
            take("best", order, count // 4)
            take("worst", order[::-1], count // 4)
            if rows.kept is not None and not rows.kept.all():
                cut = int(rows.kept.sum())
                take("at the cut", order[np.argsort(np.abs(np.arange(len(order)) - cut), kind="stable")], count // 4)
        rng = numpy_rng(seed, "rows shown")
        take("drawn at random", rng.permutation(total), count - int(taken.sum()))
    else:
        taken[:] = True
    ids = np.flatnonzero(taken)
    return Sample(ids, parts, _clip(_lengths(run, ids), CHARACTERS_A_ROW * max(count, 1)))


def _lengths(run: RunFolder, ids: np.ndarray) -> np.ndarray:
    texts = [*run.texts.column("prompt", ids), *run.texts.column("response", ids)]
    return np.array([len(text or "") for text in texts])


def _clip(lengths: np.ndarray, budget: int) -> int | None:
    """The largest limit under which the clipped lengths add up to the budget; None where nothing need be clipped."""
    if lengths.sum() <= budget:
        return None
    ordered = np.sort(lengths)
    # With the K shortest whole and the others cut to the same length: what length spends the budget?
    left = budget - np.concatenate([[0], np.cumsum(ordered)[:-1]])
    share = left / np.arange(len(ordered), 0, -1)
    return max(1, int(share[np.argmax(share <= ordered)]))


def payload(run: RunFolder, rows: RowTable, some: Sample, stability: np.ndarray | None) -> dict[str, Any]:
    """What the page's script shows, by column, ready for JSON.

    Args:
        run: for texts and the gradient log.
        rows: all rows.
        some: which of them.
        stability: [N] share of resampled ensembles that keep a row, NaN where unknown, or None.
    """
    ids = some.example_ids
    clipped: dict[int, list[int]] = {}
    texts = {}
    for place, name in enumerate(("prompt", "response")):
        column = run.texts.column(name, ids)
        for number, text in enumerate(column):
            if text is not None and some.clip is not None and len(text) > some.clip:
                clipped.setdefault(number, [0, 0])[place] = len(text)
                column[number] = text[: some.clip]
        texts[name] = column
    measured = {
        "score": ("score", rows.score),
        "rank": ("rank", rows.rank),
        "g_early": ("G_s", rows.g_early),
        "g_late": ("G_t", rows.g_late),
        "drop": ("drop", rows.relative_drop),
        "variance": ("V_t", rows.variance_late),
        "length": (rows.length_name.replace("response_", ""), rows.length),
    }
    if stability is not None:
        measured["stability"] = ("kept by", stability)
    numbers = {}
    for key, (title, values) in measured.items():
        if np.isfinite(values).any():
            column = values[ids]
            numbers[key] = {"title": title, "values": short_numbers(_whole(column) if key in WHOLE else column)}
    return {
        "id": ids.tolist(),
        "kept": None if rows.kept is None else rows.kept[ids].astype(int).tolist(),
        **texts,
        "clipped": clipped,
        "numbers": numbers,
        "source": _names(rows.sources, ids),
        "kind": _names(rows.kinds, ids),
        "reason": {number: run.unscored[row] for number, row in enumerate(ids.tolist()) if row in run.unscored},
        "log": _measurements(run, ids),
    }


WHOLE = ("rank", "length")


def _whole(values: np.ndarray) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in values]


def _names(values: Any, ids: np.ndarray) -> dict[str, Any] | None:
    if values is None:
        return None
    some = [str(values[row]) if values[row] is not None else "" for row in ids]
    names = sorted(set(some))
    place = {name: number for number, name in enumerate(names)}
    return {"names": names, "of": [place[name] for name in some]}


def _measurements(run: RunFolder, ids: np.ndarray) -> dict[str, Any] | None:
    """Norm and loss of each member and epoch: lists of epochs · members numbers a row, one after the other."""
    if run.log is None:
        return None
    epochs = [run.log.epoch(epoch) for epoch in run.log.epochs]
    logged = epochs[0].example_ids
    places = np.minimum(np.searchsorted(logged, ids), len(logged) - 1)
    known = logged[places] == ids
    found: dict[str, Any] = {"members": run.log.members, "epochs": run.log.epochs}
    for name in ("grad_norm", "loss"):
        values = np.stack([getattr(epoch, name)[:, places] for epoch in epochs])  # [E, M, K]
        values = np.where(known, values, np.nan).astype(float)
        digits = 6 if name == "grad_norm" else 4  # the members' variance is a small difference of norms
        found[name] = short_numbers(values.transpose(2, 0, 1).ravel(), digits)  # [K, E, M]
    return found
