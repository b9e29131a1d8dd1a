"""The size of the selected rows beside all rows: rows, tokens and the time of training."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.reports.plan_table import format_seconds
from gradfiltering.reports.run_files import RunFiles

ALL_ROWS_MODEL = "full"


@dataclass(frozen=True)
class TrainingSaving:
    """A cost of training on the selected rows, beside that of training on all of them.

    Attributes:
        label: of the cost.
        subset: of the selected rows, in words.
        pool: of all rows, in words.
        saved_share: share of the cost that is saved; negative where the subset costs more.
        basis: tells measured numbers from estimates.
    """

    label: str
    subset: str
    pool: str
    saved_share: float
    basis: str = ""


def estimate_savings(run_files: RunFiles) -> list[TrainingSaving]:
    """Compare rows, tokens and minutes of training; empty where nothing was selected.

    Minutes are those of the models that this run trained. Where it trained none on all rows, the time grows with the
    tokens; where it trained none at all, the share alone is known.
    """
    if run_files.selected_ids is None or not run_files.row_count:
        return []
    selection_summary = run_files.selection
    selected_count = selection_summary.get("selected", len(run_files.selected_ids))
    row_count = run_files.counted_rows
    savings = [
        TrainingSaving("Rows", f"{selected_count:,}", f"{row_count:,}", 1 - selected_count / row_count),
    ]
    token_counts = count_tokens(run_files)
    if token_counts is None:
        return savings
    subset_tokens, pool_tokens = token_counts
    token_share = subset_tokens / max(pool_tokens, 1)
    savings.append(
        TrainingSaving(
            "Tokens",
            f"about {format_rounded(subset_tokens)}",
            f"{format_rounded(pool_tokens)}",
            1 - token_share,
            "by the length of the texts",
        )
    )
    candidate, full = run_files.candidate_result, run_files.target_results.get(ALL_ROWS_MODEL)
    if not candidate.get("seconds"):
        note = "by tokens; no model was trained in this run"
        savings.append(TrainingSaving("Training time", f"about {token_share:.0%}", "100%", 1 - token_share, note))
        return savings
    if full and full.get("seconds"):
        pool_seconds, is_measured = full["seconds"], True
    else:
        pool_seconds, is_measured = candidate["seconds"] / max(token_share, 1e-9), False
    savings.append(
        TrainingSaving(
            "Training time",
            format_seconds(candidate["seconds"]),
            format_seconds(pool_seconds) if is_measured else f"about {format_seconds(pool_seconds)}",
            1 - candidate["seconds"] / pool_seconds,
            "both measured in this run" if is_measured else "all rows estimated by tokens",
        )
    )
    return savings


def count_tokens(run_files: RunFiles) -> tuple[float, float] | None:
    """Count the tokens of the selected rows, by the share of characters that they have, and of all scored rows.

    None where the run counted none or left no texts.
    """
    pool_tokens = run_files.summary.get("data", {}).get("tokens")
    if not pool_tokens or run_files.row_texts is None or run_files.selected_ids is None:
        return None
    texts = run_files.row_texts[run_files.is_drawn(run_files.row_texts.index.to_numpy())]
    prompt_lengths, response_lengths = (
        texts[name].fillna("").str.len().to_numpy(dtype=np.float64) for name in ("prompt", "response")
    )
    characters = prompt_lengths + response_lengths
    is_scored = ~np.isin(texts.index, list(run_files.unscored_reasons))
    pool_characters = float(characters[is_scored].sum())
    if not pool_characters:
        return None
    subset_characters = float(characters[np.isin(texts.index, run_files.selected_ids)].sum())
    return pool_tokens * subset_characters / pool_characters, float(pool_tokens)


def format_rounded(count: float) -> str:
    """Write a count with three digits: 950, 12,300, 4.56 million."""
    if count >= 1e6:
        return f"{count / 1e6:.3g} million"
    return f"{float(f'{count:.3g}'):,.0f}"
