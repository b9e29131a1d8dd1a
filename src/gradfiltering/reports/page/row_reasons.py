"""Rows that went in and rows that did not, each with a sentence why, from the row's own figures."""

from dataclasses import dataclass

import numpy as np

from gradfiltering.reports.page.row_measurements import RowMeasurements
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.seeding import numpy_rng

EXAMPLES_SHOWN = 5
EXAMPLE_CHARACTERS = 600
# Scorers whose score is no measurement of what a row teaches.
CHANCE_SCORERS = {"random": "drawn by chance, which says nothing about the row"}
SMALL_SHARE, HALF_SHARE, LARGE_SHARE = 0.2, 0.5, 0.8


@dataclass(frozen=True)
class RowExample:
    """A row with the reason for which it went in or did not.

    Attributes:
        row_id: its number in the data.
        prompt, response: its texts, cut to `EXAMPLE_CHARACTERS`; empty where the run left none.
        reason: a sentence without its full stop.
    """

    row_id: int
    prompt: str
    response: str
    reason: str


class RowExplainer:
    """Says in a sentence why a row was selected or dropped.

    Args:
        run_files: of the run.
        measured_rows: its rows.
        reselected_share: [N] share of resampled ensembles that select a row, NaN where unknown, or None.
    """

    def __init__(self, run_files: RunFiles, measured_rows: RowMeasurements, reselected_share: np.ndarray | None):
        self.run_files = run_files
        self.measured_rows = measured_rows
        self.reselected_share = reselected_share
        self.scorer = run_files.selection.get("scorer")
        self.ranks = measured_rows.values("rank")
        self.scored_count = measured_rows.scored_count
        self.disagreement_shares = _rank_shares(measured_rows.values("variance_late"), measured_rows.is_drawn)
        self.length_shares = _rank_shares(measured_rows.values("length"), measured_rows.is_drawn)
        self.ifd_ratios = _read_ifd(run_files, measured_rows)
        self.fallen_members = _count_fallen_members(run_files, measured_rows)
        self.last_selected_rank = run_files.last_selected_rank

    def explain(self, row_id: int) -> str:
        """Write the sentence, without its full stop."""
        if row_id in self.run_files.unscored_reasons:
            return f"Not scored: {self.run_files.unscored_reasons[row_id]}"
        position = int(self.measured_rows.find_positions(np.array([row_id]))[0])
        clauses = [*self._explain_score(position), *self._explain_choice(position)]
        signs = self.run_files.hygiene_signs.get(row_id)
        if signs:
            clauses.append(f"it shows signs of a poor row ({', '.join(signs)})")
        sentence = "; ".join(clauses)
        return sentence[:1].upper() + sentence[1:]

    def _explain_score(self, position: int) -> list[str]:
        if self.scorer in CHANCE_SCORERS:
            return [CHANCE_SCORERS[self.scorer]]
        drop = self.measured_rows.values("relative_drop")[position]
        if np.isfinite(drop):
            return [self._explain_gradient(position, drop)]
        if self.scorer is None:
            return ["taken without a score" if self._is_selected(position) else "not taken; the selector used no score"]
        if self.scorer == "length" and np.isfinite(self.length_shares[position]):
            length = self.measured_rows.values("length")[position]
            share = self.length_shares[position]
            return [f"its answer has {length:,.0f} {self.measured_rows.length_unit}, more than {share:.0%} of the rows"]
        score, ifd_ratio = self.measured_rows.values("score")[position], self.ifd_ratios[position]
        if np.isfinite(ifd_ratio):
            return [_explain_ifd(ifd_ratio, comes_last=score < 0)]
        return [f"its score is {score:.3g}"] if np.isfinite(score) else []

    def _explain_gradient(self, position: int, drop: float) -> str:
        """Say how the gradient moved, and how far the members agree."""
        moved = "fell" if drop > 0 else "rose"
        reason_text = f"its gradient {moved} by {abs(drop):.0%}"
        if self.fallen_members is None:
            return reason_text
        fallen, member_count = int(self.fallen_members[0][position]), self.fallen_members[1]
        agreeing = fallen if drop > 0 else member_count - fallen
        if agreeing == member_count:
            reason_text += f" and all {member_count} members agree"
        else:
            reason_text += f", as only {agreeing} of {member_count} members say"
        share = self.disagreement_shares[position]
        # A row may fall far and yet be dropped, because the members differ on how far.
        large_share = LARGE_SHARE if drop <= 0 or self._is_selected(position) else HALF_SHARE
        if np.isfinite(share) and share <= SMALL_SHARE:
            reason_text += f"; their measurements lie closer together than for {1 - share:.0%} of the rows"
        elif np.isfinite(share) and share >= large_share:
            reason_text += f"; their measurements lie further apart than for {share:.0%} of the rows"
        return reason_text

    def _explain_choice(self, position: int) -> list[str]:
        rank = self.ranks[position]
        clauses = []
        if np.isfinite(rank):
            clauses.append(f"rank {rank:,.0f} of {self.scored_count:,}")
            is_within = np.isfinite(self.last_selected_rank) and rank < self.last_selected_rank
            if is_within and not self._is_selected(position):
                clauses[-1] += ", good enough by its score, but the selector looks at more than the score"
        share = None if self.reselected_share is None else self.reselected_share[position]
        if share is not None and np.isfinite(share):
            clauses.append(f"chosen in {share:.0%} of resampled ensembles")
        return clauses

    def _is_selected(self, position: int) -> bool:
        return self.measured_rows.selected is not None and bool(self.measured_rows.selected[position])


def pick_examples(
    explainer: RowExplainer, run_files: RunFiles, measured_rows: RowMeasurements
) -> tuple[list[RowExample], list[RowExample]]:
    """Pick five selected and five dropped rows, spread evenly over the ranks from the best to the last.

    Rows without a rank are drawn by the run's seed. Both lists are empty where nothing was selected.
    """
    if measured_rows.selected is None:
        return [], []
    ranks = measured_rows.values("rank")
    examples = []
    for is_member in (measured_rows.selected, ~measured_rows.selected):
        positions = np.flatnonzero(is_member & np.isfinite(ranks))
        positions = positions[np.argsort(ranks[positions], kind="stable")]
        if not len(positions):
            positions = numpy_rng(run_files.seed, "rows explained").permutation(np.flatnonzero(is_member))
        shown_places = np.unique(
            np.linspace(0, len(positions) - 1, min(EXAMPLES_SHOWN, len(positions))).round().astype(int)
        )
        shown_ids = measured_rows.row_ids[positions[shown_places]].tolist() if len(positions) else []
        examples.append([make_example(explainer, run_files, row_id) for row_id in shown_ids])
    return examples[0], examples[1]


def make_example(explainer: RowExplainer, run_files: RunFiles, row_id: int) -> RowExample:
    """Take a row's texts, cut where they are long, and its reason."""
    texts = {"prompt": "", "response": ""}
    if run_files.row_texts is not None:
        for name in texts:
            text = run_files.row_texts.loc[row_id, name]
            texts[name] = _shorten(text if isinstance(text, str) else "")
    return RowExample(row_id, texts["prompt"], texts["response"], explainer.explain(row_id))


def _explain_ifd(ifd_ratio: float, comes_last: bool) -> str:
    """Say how far the prompt helps a model to predict the answer; scores below zero come after all others."""
    extent = f"{1 - ifd_ratio:.0%} less" if ifd_ratio < 1 else "no less"
    consequence = ", so it comes after all others" if comes_last else ""
    return f"its prompt makes the answer {extent} surprising (IFD {ifd_ratio:.2f}){consequence}"


def _read_ifd(run_files: RunFiles, measured_rows: RowMeasurements) -> np.ndarray:
    """Read the ratio beside each score by IFD; [N] float64, NaN where a row has none."""
    scores = run_files.scores
    if scores is None or "ifd" not in scores:
        return np.full(len(measured_rows), np.nan)
    return scores.set_index("example_id")["ifd"].reindex(measured_rows.row_ids).to_numpy(dtype=float)


def _shorten(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1].rstrip() + "…"


def _rank_shares(values: np.ndarray, is_drawn: np.ndarray) -> np.ndarray:
    """Compute the share of the other known values that lie below each, NaN where a value is unknown. [N] -> [N].

    Args:
        values: [N] numbers.
        is_drawn: [N] bool, the rows that values are compared with.
    """
    shares = np.full(len(values), np.nan)
    is_known = np.isfinite(values)
    known_values = np.sort(values[is_known & is_drawn])
    if len(known_values) > 1:
        lower_counts = np.searchsorted(known_values, values[is_known], side="left")
        shares[is_known] = np.minimum(lower_counts / (len(known_values) - 1), 1.0)
    return shares


def _count_fallen_members(run_files: RunFiles, measured_rows: RowMeasurements) -> tuple[np.ndarray, int] | None:
    """Count the members whose norm fell for each row, [N] float64 with NaN where none was logged, and the members.

    None with fewer than two members, of which nobody can say that they agree.
    """
    gradient_log = run_files.gradient_log
    if gradient_log is None or len(gradient_log.members) < 2:
        return None
    early_norms, late_norms = run_files.compared_norms  # [M, N]
    fallen = np.full(len(measured_rows), np.nan)
    logged_ids = gradient_log.epoch(run_files.epochs.late).example_ids
    fallen[measured_rows.find_positions(logged_ids)] = (late_norms < early_norms).sum(0)
    return fallen, len(gradient_log.members)
