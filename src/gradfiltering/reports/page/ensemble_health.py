"""Evidence on the ensemble's uncertainty: trajectories, collapse, held-out rows, and stability of the ranking."""

from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from gradfiltering.reports.data_lines import find_loss_unit
from gradfiltering.reports.page.charts import GREY, Chart, ChartLabels, ReferenceLine, line_chart, scatter_chart
from gradfiltering.reports.page.row_measurements import TINY
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.seeding import numpy_rng
from gradfiltering.statistics.rank_correlation import spearman_correlation
from gradfiltering.statistics.rounding import share_of_count
from gradfiltering.statistics.stability import draw_members

RESAMPLES = 100
TOP_SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
INTERVAL_ENDS = (0.025, 0.975)
HELDOUT_POINTS_DRAWN = 2000
SCORER_PACKAGE = "gradfiltering.scorers."


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95 % of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RankingStability:
    """Changes of the ranking when the members are drawn anew, with replacement.

    Attributes:
        example_ids: [N] of the logged rows.
        correlation: Spearman of the resampled scores with the run's.
        overlap: share of the run's best rows that are among the resampled best, for each of `TOP_SHARES`.
        reselected_share: [N] share of resamples in which a row is among the best K, K the number of selected rows;
            None where nothing was selected.
    """

    example_ids: np.ndarray
    correlation: Interval
    overlap: list[Interval]
    reselected_share: np.ndarray | None


def draw_trajectories(run_files: RunFiles) -> Chart | None:
    """Draw the members' adapters along training, in the plane in which their sketches differ most (PCA)."""
    trajectory = run_files.folder.read_trajectory()
    if trajectory is None or len(trajectory) < 3:
        return None
    adapter_states = trajectory.sort_values(["member", "step"], ignore_index=True)
    sketches = np.stack(adapter_states["sketch"].tolist()).astype(np.float64)
    centred = sketches - sketches.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    if sizes[0] == 0:
        return None
    plane = centred @ directions[:2].T  # [K, D] -> [K, 2]
    explained_share = float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    member_names = "member " + adapter_states["member"].astype(str)
    chart_data = pd.DataFrame(
        {"series": member_names, "x": plane[:, 0], "y": plane[:, 1], "order": adapter_states["step"]}
    )
    chart_data["hover"] = member_names + ", step " + adapter_states["step"].astype(str)
    chart_labels = ChartLabels(
        name="trajectories",
        question="Do the members stay apart?",
        reading="Each line is a member's adapter from the start of training, where all are close, to its end; the "
        f"plane holds {explained_share:.0%} of the spread. Members that end in the same place would say the same, and "
        "V_t would mean nothing.",
        x_title="first principal component of the adapters' sketches",
        y_title="second",
    )
    return line_chart(chart_labels, chart_data, height=430)


def draw_collapse(run_files: RunFiles) -> Chart | None:
    """Draw the members' relative variance V/G² at every logged epoch."""
    gradient_log = run_files.gradient_log
    if gradient_log is None or len(gradient_log.members) < 2:
        return None
    quartiles = {}
    for epoch in gradient_log.epochs:
        epoch_log = gradient_log.epoch(epoch)
        gradient_norms = epoch_log.grad_norm[:, run_files.is_drawn(epoch_log.example_ids)].astype(np.float64)  # [M, N]
        relative_variance = gradient_norms.var(0) / np.maximum(np.square(gradient_norms.mean(0)), TINY)
        quartiles[epoch] = np.quantile(relative_variance, [0.25, 0.5, 0.75])
    chart_data = pd.DataFrame.from_dict(quartiles, orient="index", columns=["low", "y", "high"])
    chart_data = chart_data.rename_axis("x").reset_index().assign(series="rows")
    variance_limit = float(run_files.options("diagnostics")["relative_variance"])
    chart_labels = ChartLabels(
        name="collapse",
        question="Has the members' disagreement collapsed?",
        reading="V/G² is the variance relative to the squared norm: median and middle half of the rows. Below the "
        "limit the members hardly disagree, and dividing by V_t divides by noise.",
        x_title=gradient_log.unit,
        y_title="V/G²",
    )
    limit_line = ReferenceLine("y", variance_limit, f"limit {variance_limit:g}")
    return line_chart(chart_labels, chart_data, reference_lines=[limit_line], y_log=True, whole_x=True)


def draw_heldout(run_files: RunFiles) -> Chart | None:
    """Draw V_t against the loss of held-out rows, with Spearman's correlation and its bootstrap interval over rows.

    Returns:
        None where gradient norms of held-out rows were not measured, or by one member only.
    """
    gradient_log = run_files.folder.read_gradient_log(heldout=True)
    if gradient_log is None or len(gradient_log.members) < 2:
        return None
    late_epoch = run_files.epochs.late if run_files.epochs.late in gradient_log.epochs else gradient_log.epochs[-1]
    late_log = gradient_log.epoch(late_epoch)
    if not late_log.has_norms:
        return None
    late_variance, mean_loss = late_log.grad_norm.astype(np.float64).var(0), late_log.loss.astype(np.float64).mean(0)
    correlation = spearman_correlation(late_variance, mean_loss)
    if correlation is None:
        return None
    rng = numpy_rng(run_files.seed, "heldout bootstrap")
    resampled_correlations = []
    for _ in range(10 * RESAMPLES if len(mean_loss) <= HELDOUT_POINTS_DRAWN else RESAMPLES):
        drawn_rows = rng.integers(len(mean_loss), size=len(mean_loss))
        resampled_correlations.append(spearman_correlation(late_variance[drawn_rows], mean_loss[drawn_rows]))
    interval = _interval(correlation, [value for value in resampled_correlations if value is not None])
    chart_data = pd.DataFrame({"x": late_variance, "y": mean_loss}).query("x > 0").head(HELDOUT_POINTS_DRAWN)
    chart_labels = ChartLabels(
        name="heldout",
        question="Does disagreement tell where the proxy is wrong?",
        reading=f"{len(mean_loss):,} held-out rows: Spearman {correlation:+.2f} [{interval.low:+.2f}, "
        f"{interval.high:+.2f}] (95% bootstrap over rows). Above 0, rows on which the members disagree are rows that "
        "the proxy gets wrong.",
        x_title="V_t of a held-out row",
        y_title=f"its loss, {find_loss_unit(run_files.summary)}",
    )
    return scatter_chart(chart_labels, chart_data, x_log=True)


def build_gradient_scorer(run_files: RunFiles) -> Any:
    """Build the run's scorer where it scores gradient norms, else None; only the project's own classes are built."""
    options = dict(run_files.options("scorer"))
    target_path = str(options.pop("_target_", ""))
    if not target_path.startswith(SCORER_PACKAGE):
        return None
    module_name, _, class_name = target_path.rpartition(".")
    try:
        scorer_class = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError):
        return None
    return scorer_class(**options) if hasattr(scorer_class, "score_norms") else None


def measure_stability(run_files: RunFiles) -> RankingStability | None:
    """Draw the members anew and rank again; None where there is one member, or the score is of another kind."""
    gradient_scorer, gradient_log = build_gradient_scorer(run_files), run_files.gradient_log
    if gradient_scorer is None or gradient_log is None or len(gradient_log.members) < 2 or run_files.scores is None:
        return None
    early_norms, late_norms = run_files.compared_norms
    example_ids = gradient_log.epoch(run_files.epochs.late).example_ids
    run_scores = run_files.scores["score"].to_numpy()
    if not np.array_equal(example_ids, run_files.scores["example_id"]):
        return None
    if not np.allclose(gradient_scorer.score_norms(early_norms, late_norms), run_scores, rtol=1e-6):
        return None
    is_drawn = run_files.is_drawn(example_ids)
    example_ids, run_scores = example_ids[is_drawn], run_scores[is_drawn]
    early_norms, late_norms = early_norms[:, is_drawn], late_norms[:, is_drawn]
    run_order, run_ranks = np.lexsort((example_ids, -run_scores)), rankdata(run_scores)
    row_counts = [max(1, share_of_count(share, len(example_ids))) for share in TOP_SHARES]
    selected_count = 0 if run_files.selected_ids is None else int(run_files.is_drawn(run_files.selected_ids).sum())
    rng = numpy_rng(run_files.seed, "members bootstrap")
    correlations, overlaps, reselected = [], [], np.zeros(len(example_ids))
    for _ in range(RESAMPLES):
        drawn_members = draw_members(rng, len(gradient_log.members))
        scores = gradient_scorer.score_norms(early_norms[drawn_members], late_norms[drawn_members])
        rank_positions = np.empty(len(example_ids), dtype=np.int64)
        rank_positions[np.lexsort((example_ids, -scores))] = np.arange(len(example_ids))
        correlations.append(float(np.corrcoef(run_ranks, rankdata(scores))[0, 1]))
        overlaps.append([float((rank_positions[run_order[:count]] < count).mean()) for count in row_counts])
        reselected += rank_positions < selected_count
    return RankingStability(
        example_ids=example_ids,
        correlation=_interval(np.median(correlations), correlations),
        overlap=[_interval(np.median(column), column) for column in np.array(overlaps).T],
        reselected_share=reselected / RESAMPLES if selected_count else None,
    )


def draw_stability(ranking_stability: RankingStability, selected_share: float | None) -> Chart:
    """Draw the overlap of the best rows against the share of rows that counts as best."""
    percent = [100 * share for share in TOP_SHARES]
    resampled_line = pd.DataFrame({"series": "resampled members", "x": percent})
    for column, end in (("y", "value"), ("low", "low"), ("high", "high")):
        resampled_line[column] = [100 * getattr(interval, end) for interval in ranking_stability.overlap]
    chance_line = pd.DataFrame({"series": "chance", "x": percent, "y": percent})
    correlation = ranking_stability.correlation
    chart_labels = ChartLabels(
        name="stability",
        question="Would another ensemble have chosen the same rows?",
        reading=f"Members drawn anew with replacement, {RESAMPLES} times: Spearman of the scores "
        f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]. The line is the median overlap, the "
        "band 95% of the draws.",
        x_title="best rows looked at, % of the logged rows",
        y_title="again among the best, %",
    )
    reference_lines = [] if selected_share is None else [ReferenceLine("x", 100 * selected_share, "selected")]
    return line_chart(
        chart_labels,
        pd.concat([resampled_line, chance_line]),
        palette_indices={"resampled members": 0, "chance": GREY},
        dashed_series=["chance"],
        reference_lines=reference_lines,
    )


def correlate_members(run_files: RunFiles) -> pd.DataFrame | None:
    """Compute Spearman's correlation of the relative drops of every two members."""
    gradient_log = run_files.gradient_log
    if gradient_log is None or len(gradient_log.members) < 2:
        return None
    is_drawn = run_files.is_drawn(gradient_log.epoch(run_files.epochs.late).example_ids)
    early_norms, late_norms = (norms[:, is_drawn] for norms in run_files.compared_norms)
    relative_drops = (early_norms - late_norms) / np.maximum(early_norms, TINY)  # [M, N]
    correlations = {
        f"{gradient_log.members[first]} and {gradient_log.members[second]}": spearman_correlation(
            relative_drops[first], relative_drops[second]
        )
        for first, second in combinations(range(len(relative_drops)), 2)
    }
    return pd.DataFrame({"Spearman": correlations})


def _interval(value: float, resampled_values: ArrayLike) -> Interval:
    low, high = np.quantile(np.asarray(resampled_values), INTERVAL_ENDS)
    return Interval(float(value), float(low), float(high))
