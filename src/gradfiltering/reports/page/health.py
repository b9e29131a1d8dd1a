"""Is the ensemble's uncertainty real? Trajectories, collapse, held-out rows, and how stable the ranking is."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations

import numpy as np
from scipy.stats import rankdata

from gradfiltering.methods.diagnostics import spearman
from gradfiltering.reports.page.charts import Chart, Mark, Series
from gradfiltering.reports.page.folder import RunFolder
from gradfiltering.reports.page.table import TINY
from gradfiltering.scorers.gradient_statistics import GradientScorer, gradient_statistics
from gradfiltering.seeding import numpy_rng

DRAWS = 100
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
INTERVAL = (0.025, 0.975)
MOST_ROWS = 2000


@dataclass(frozen=True)
class Interval:
    """A value and the middle 95% of its resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Stability:
    """How the ranking changes when the members are drawn anew, with replacement.

    Attributes:
        example_ids: [N] of the logged rows.
        correlation: Spearman of the resampled scores with the run's.
        overlap: share of the run's best rows that are among the resampled best, for each of `SHARES`.
        kept_share: [N] share of draws in which a row is among the best K, K the number of chosen rows; None where
            nothing was chosen.
        draws: resamples.
    """

    example_ids: np.ndarray
    correlation: Interval
    overlap: list[Interval]
    kept_share: np.ndarray | None
    draws: int


def trajectories(run: RunFolder) -> Chart | None:
    """The members' adapters along training, in the plane in which their sketches differ most (PCA)."""
    found = run.trajectory
    if found is None or len(found["step"]) < 3:
        return None
    centred = found["sketch"] - found["sketch"].mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    if sizes[0] == 0:
        return None
    plane = centred @ axes[:2].T  # [K, 64] -> [K, 2]
    explained = float((sizes[:2] ** 2).sum() / (sizes**2).sum())
    members = np.unique(found["member"])
    series = []
    for number, member in enumerate(members):
        mine = np.flatnonzero(found["member"] == member)
        mine = mine[np.argsort(found["step"][mine])]
        hover = [f"member {member}, step {step}" for step in found["step"][mine]]
        name = f"member {member}"
        series.append(Series(name, plane[mine, 0], plane[mine, 1], "line", colour=number, hover=hover))
        series.append(Series("", plane[mine[-1:], 0], plane[mine[-1:], 1], "points", colour=number, hover=hover[-1:]))
    return Chart(
        name="trajectories",
        question="Do the members stay apart?",
        x_title="first principal component of the adapters' sketches",
        y_title="second",
        series=series,
        reading=f"Each line is one member from the start of training to its end (large mark); the plane holds "
        f"{explained:.0%} of the spread. Members that end in one place would say the same, and V_t would mean nothing.",
        height=430,
    )


def collapse(run: RunFolder) -> Chart | None:
    """V/G² at every logged epoch: has the variance collapsed?"""
    log = run.log
    if log is None or len(log.members) < 2:
        return None
    quartiles = []
    for epoch in log.epochs:
        norms = log.epoch(epoch).grad_norm.astype(np.float64)
        relative = norms.var(0) / np.maximum(np.square(norms.mean(0)), TINY)
        quartiles.append(np.quantile(relative, [0.25, 0.5, 0.75]))
    low, middle, high = np.array(quartiles).T
    limit = float(run.config["diagnostics"]["relative_variance"])
    return Chart(
        name="collapse",
        question="Has the members' disagreement collapsed?",
        x_title="epoch",
        y_title="V/G²",
        series=[Series("", np.array(log.epochs), middle, low=low, high=high)],
        reading="V/G² is the variance relative to the squared norm: median and middle half of the rows. "
        "Below the limit the members hardly disagree, and dividing by V_t "
        "divides by noise.",
        marks=[Mark("y", limit, f"limit {limit:g}")],
        y_log=True,
        whole_x=True,
    )


def heldout(run: RunFolder) -> tuple[Chart, Interval] | None:
    """V_t against the loss of held-out rows, with Spearman's correlation and its bootstrap interval over rows."""
    log = run.heldout_log
    if log is None or len(log.members) < 2:
        return None
    late = log.epoch(run.epochs.late if run.epochs.late in log.epochs else log.epochs[-1])
    variance = late.grad_norm.astype(np.float64).var(0)
    loss = late.loss.astype(np.float64).mean(0)
    value = spearman(variance, loss)
    if value is None:
        return None
    rng = numpy_rng(run.environment["seed"], "heldout bootstrap")
    draws = []
    for _ in range(10 * DRAWS if len(loss) <= MOST_ROWS else DRAWS):
        some = rng.integers(len(loss), size=len(loss))
        draws.append(spearman(variance[some], loss[some]))
    found = _interval(value, np.array([draw for draw in draws if draw is not None]))
    chart = Chart(
        name="heldout",
        question="Does disagreement tell where the proxy is wrong?",
        x_title="V_t of a held-out row",
        y_title="its loss, nats per response token",
        series=[Series("", variance[:MOST_ROWS], loss[:MOST_ROWS], "points")],
        reading=f"{len(loss):,} held-out rows: Spearman {value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] "
        "(95% bootstrap over rows). Above 0, rows on which the members disagree are rows the proxy gets wrong.",
        x_log=True,
    )
    return chart, found


def scorer_of(run: RunFolder) -> GradientScorer | None:
    """The run's scorer, where it is a function of G_s, G_t and V_t; only the project's own classes are built."""
    about = dict(run.config.get("scorer", {}))
    module, _, name = str(about.pop("_target_", "")).rpartition(".")
    if not module.startswith("gradfiltering.scorers."):
        return None
    if find_spec(module) is None:  # of a former version
        return None
    made = getattr(import_module(module), name, None)
    if not (isinstance(made, type) and issubclass(made, GradientScorer)):
        return None
    return made(**about)


def stability(run: RunFolder) -> Stability | None:
    """Draws the members anew and ranks again; None where there is one member, or the score is of another kind."""
    scorer, log = scorer_of(run), run.log
    if scorer is None or log is None or len(log.members) < 2 or run.scores is None:
        return None
    early, late = (log.epoch(epoch).grad_norm.astype(np.float64) for epoch in (run.epochs.early, run.epochs.late))
    ids, members = log.epoch(run.epochs.late).example_ids, len(log.members)
    if type(scorer).score is not GradientScorer.score or not np.array_equal(ids, run.scores["example_id"]):
        return None
    own = run.scores["score"]
    order, own_ranks = np.lexsort((ids, -own)), rankdata(own)
    counts = [max(1, round(share * len(ids))) for share in SHARES]
    rng = numpy_rng(run.environment["seed"], "members bootstrap")
    correlations, overlaps = [], []
    chosen = 0 if run.chosen is None else len(run.chosen)
    kept = np.zeros(len(ids))
    for _ in range(DRAWS):
        drawn = _draw(rng, members)
        score = scorer.formula(gradient_statistics(early[drawn], late[drawn], scorer.ddof))
        place = np.empty(len(ids), dtype=np.int64)
        place[np.lexsort((ids, -score))] = np.arange(len(ids))
        correlations.append(float(np.corrcoef(own_ranks, rankdata(score))[0, 1]))
        overlaps.append([float((place[order[:count]] < count).mean()) for count in counts])
        kept += place < chosen
    overlap = [_interval(float(np.median(column)), column) for column in np.array(overlaps).T]
    median = float(np.median(correlations))
    share = kept / DRAWS if chosen else None
    return Stability(ids, _interval(median, np.array(correlations)), overlap, share, DRAWS)


def _draw(rng: np.random.Generator, members: int) -> np.ndarray:
    """Members with replacement, at least two different ones: of one alone there is no variance."""
    while True:
        drawn = rng.integers(members, size=members)
        if len(np.unique(drawn)) > 1:
            return drawn


def stability_chart(found: Stability, fraction: float | None) -> Chart:
    """Overlap of the best rows against how many of them are looked at."""
    percent = [100 * share for share in SHARES]
    middle, low, high = ([100 * getattr(one, end) for one in found.overlap] for end in ("value", "low", "high"))
    line = Series("resampled members", percent, middle, low=low, high=high)
    chance = Series("chance", percent, percent, colour=5, dash=True)
    marks = [] if fraction is None else [Mark("x", 100 * fraction, "chosen")]
    return Chart(
        name="stability",
        question="Would another ensemble have chosen the same rows?",
        x_title="best rows looked at, % of the logged rows",
        y_title="again among the best, %",
        series=[chance, line],
        reading=f"Members drawn anew with replacement, {found.draws} times: Spearman of the scores "
        f"{found.correlation.value:.2f} [{found.correlation.low:.2f}, {found.correlation.high:.2f}]. The line is the "
        "median overlap, the band 95% of the draws.",
        marks=marks,
    )


def agreement(run: RunFolder) -> list[tuple[int, int, float | None]]:
    """Spearman of the relative drops of every two members."""
    log = run.log
    if log is None or len(log.members) < 2:
        return []
    early, late = (log.epoch(epoch).grad_norm.astype(np.float64) for epoch in (run.epochs.early, run.epochs.late))
    drops = (early - late) / np.maximum(early, TINY)
    return [
        (log.members[a], log.members[b], spearman(drops[a], drops[b])) for a, b in combinations(range(len(drops)), 2)
    ]


def _interval(value: float, draws: np.ndarray) -> Interval:
    low, high = np.quantile(draws, INTERVAL)
    return Interval(value, float(low), float(high))
