"""The spread of the selected rows over sources, lengths, languages and duplicates, beside that of the pool."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradfiltering.reports.page.row_measurements import RowMeasurements
from gradfiltering.reports.run_files import RunFiles

SOURCES_SHOWN = 8
LENGTH_QUANTILES = (0.25, 0.5, 0.75)
DUPLICATE_SIGNS = {"exact duplicate": "exact copies of an earlier row", "near duplicate": "near copies"}
LANGUAGE_SIGN = "unexpected language"


@dataclass(frozen=True)
class SpreadLine:
    """A part of the rows.

    Attributes:
        name: in words.
        pool: share of all rows, 0 to 1.
        selected: share of the selected rows.
    """

    name: str
    pool: float
    selected: float


@dataclass(frozen=True)
class Spread:
    """The shares of the parts that rows fall into.

    Attributes:
        title: of what tells the parts apart.
        lines: the parts.
    """

    title: str
    lines: list[SpreadLine]


def compare_spread(run_files: RunFiles, measured_rows: RowMeasurements) -> list[Spread]:
    """Compare selected rows and pool by whatever is known of the rows; empty where nothing was selected."""
    is_selected = measured_rows.selected
    if is_selected is None or not is_selected.any():
        return []
    spreads = [
        _compare_sources(measured_rows.sources, is_selected),
        _compare_lengths(measured_rows, is_selected),
        *_compare_signs(run_files, measured_rows.row_ids, is_selected),
    ]
    return [spread for spread in spreads if spread is not None and spread.lines]


def _compare_sources(sources: list[str] | None, is_selected: np.ndarray) -> Spread | None:
    """Compare the largest sources; the others are one part."""
    if sources is None or len(set(sources)) < 2:
        return None
    source_names = np.array(sources, dtype=object)
    names, counts = np.unique(source_names, return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")].tolist()
    shown_names = largest if len(largest) <= SOURCES_SHOWN else largest[: SOURCES_SHOWN - 1]
    parts = {str(name) or "(none)": source_names == name for name in shown_names}
    if len(shown_names) < len(largest):
        parts[f"{len(largest) - len(shown_names)} others"] = ~np.isin(source_names, shown_names)
    return Spread("Source", _share_parts(parts, is_selected))


def _compare_lengths(measured_rows: RowMeasurements, is_selected: np.ndarray) -> Spread | None:
    """Compare the quarters of the pool by the length of the response."""
    lengths = measured_rows.values("length")
    is_known = np.isfinite(lengths)
    if not is_known.any() or np.ptp(lengths[is_known]) == 0:
        return None
    edges = np.unique(np.quantile(lengths[is_known], LENGTH_QUANTILES).round())
    bounds = [-np.inf, *edges.tolist(), np.inf]
    unit = measured_rows.length_unit
    parts = {}
    for low, high in pairwise(bounds):
        if np.isinf(low):
            name = f"up to {high:,.0f} {unit}"
        else:
            name = f"over {low:,.0f}" if np.isinf(high) else f"{low + 1:,.0f} to {high:,.0f}"
        parts[name] = is_known & (lengths > low) & (lengths <= high)
    return Spread("Length of the answer", _share_parts(parts, is_selected))


def _compare_signs(run_files: RunFiles, row_ids: np.ndarray, is_selected: np.ndarray) -> list[Spread]:
    """Compare languages, duplicates and other signs of poor rows, as far as the run looked for them."""
    if "hygiene" not in run_files.summary:
        return []
    rows_by_sign: dict[str, list[int]] = {
        name.replace("_", " "): [] for name in run_files.summary["hygiene"].get("counts", {})
    }
    for row_id, signs in run_files.hygiene_signs.items():
        for sign in signs:
            rows_by_sign.setdefault(sign, []).append(row_id)
    shown: Mapping[str, np.ndarray] = {sign: np.isin(row_ids, ids) for sign, ids in rows_by_sign.items()}
    spreads = []
    if LANGUAGE_SIGN in shown:
        is_unusual = shown[LANGUAGE_SIGN]
        parts = {"the usual languages of the data, or not told": ~is_unusual, "another language": is_unusual}
        spreads.append(Spread("Language", _share_parts(parts, is_selected)))
    duplicates = {description: shown[sign] for sign, description in DUPLICATE_SIGNS.items() if sign in shown}
    spreads.append(Spread("Duplicates", _share_parts(duplicates, is_selected)))
    other_signs = {
        sign: is_shown
        for sign, is_shown in shown.items()
        if sign not in (*DUPLICATE_SIGNS, LANGUAGE_SIGN) and is_shown.any()
    }
    spreads.append(Spread("Other signs of poor rows", _share_parts(other_signs, is_selected)))
    return spreads


def _share_parts(parts: Mapping[str, np.ndarray], is_selected: np.ndarray) -> list[SpreadLine]:
    return [
        SpreadLine(name, float(is_inside.mean()), float(is_inside[is_selected].mean()))
        for name, is_inside in parts.items()
    ]
