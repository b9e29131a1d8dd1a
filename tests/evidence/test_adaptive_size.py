"""`ensemble.m=auto` and `epochs=auto`: when the searches stop, what they say, and what they cost."""

from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence import adaptive_size
from gradfiltering.evidence.adaptive_size import AdaptiveSize, SettlingSnapshots, measure_settled_evidence
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.measurers import StageMeasurements
from gradfiltering.requests import BaseModelLosses, EpochLog, Evidence, GradientLog, GradientLogPair
from gradfiltering.runs.gradient_log import GradientLogReader
from gradfiltering.seeding import numpy_rng
from tests.ensembles.test_reuse import STEPS
from tests.support.interruption import Steps, counting
from tests.support.small_ensembles import (
    assert_identical_logs,
    float64_base_model,
    measurement_context,
    small_ensemble,
)

ROWS, SELECTED = 100, 10
SIZE = AdaptiveSize(start=3, step=2, limit=8, stability=0.9, resamples=50)
EPOCHS = SettlingSnapshots(early=1, limit=5, overlap=0.8, correlation=0.95)
AUTO = small_ensemble(m="auto")


@pytest.fixture
def settle(monkeypatch):
    """Searches with ensembles whose norms at an epoch are planted: `norms(member, epoch)` -> [N]."""

    def run(norms, ensemble, snapshots, size=SIZE, score_rows=None):
        measured = []

        def measure_log(epoch, members):
            values = np.stack([norms(member, epoch) for member in range(members)])
            return EpochLog(np.arange(ROWS), values, values, np.ones(ROWS, np.int32))

        def measure_stage(stage, requests, context):
            members, pair = context.ensemble.m, context.snapshots
            measured.append((members, pair.late))
            logs = GradientLogPair(*(measure_log(epoch, members) for epoch in (pair.early, pair.late)))
            return StageMeasurements({GradientLog(): logs})

        def measure_evidence(requests, context, evidence=None, run_stage=None):
            ids = np.arange(ROWS)
            return evidence or Evidence(ids, 0, np.ones(ROWS), np.ones(ROWS), results={BaseModelLosses(): None})

        monkeypatch.setattr(adaptive_size, "measure_stage", measure_stage)
        monkeypatch.setattr(adaptive_size, "measure_evidence", measure_evidence)
        _, settled = measure_settled_evidence(
            {GradientLog()}, context_of(ensemble), snapshots, size, score_rows or mean_late_norm, SELECTED
        )
        return SimpleNamespace(
            measured=measured, members=settled.ensemble.m, snapshots=settled.snapshots,
            adaptive=settled.reports.ensemble.adaptive,
        )  # fmt: skip

    return run


def context_of(ensemble):
    """A context that holds the ensemble and nothing that the search does not read."""
    nothing = {field.name: None for field in fields(MeasurementContext) if field.name != "reports"}
    return MeasurementContext(**{**nothing, "examples": range(ROWS), "ensemble": ensemble, "seed": 0})


def mean_late_norm(evidence):
    return evidence.get(GradientLog()).late.grad_norm.mean(0).astype(float)


def noise(*name):
    return numpy_rng("planted", *name).random(ROWS)


def test_members_that_agree_at_once_stay_at_the_start(settle):
    found = settle(lambda member, epoch: noise("same"), AUTO, SnapshotPair(1, 2))
    assert found.measured == [(3, 2)] and found.members == 3
    assert found.adaptive["members"]["m"] == 3 and "stable" in found.adaptive["members"]["why"]
    assert found.adaptive["members"]["tried"] == [{"m": 3, "stability": 1.0}]


def test_members_of_pure_noise_go_to_the_limit(settle):
    found = settle(lambda member, epoch: noise(member, epoch), AUTO, SnapshotPair(1, 2))
    assert [members for members, _ in found.measured] == [3, 5, 7, 8], "the last step goes to the limit, not beyond"
    assert found.adaptive["members"]["m"] == 8 and "limit was reached" in found.adaptive["members"]["why"]


def test_members_are_added_only_until_the_selection_is_stable(settle):
    share = np.linspace(0, 1, ROWS)
    found = settle(
        lambda member, epoch: share + 0.4 * noise(member, epoch), AUTO, SnapshotPair(1, 2), replace(SIZE, stability=0.6)
    )
    stable = [trial["stability"] >= 0.6 for trial in found.adaptive["members"]["tried"]]
    assert stable == [False] * (len(stable) - 1) + [True]


def test_epochs_stop_at_the_first_that_hardly_changes_the_ranking(settle):
    found = settle(
        lambda member, epoch: noise("settled" if epoch >= 3 else epoch) + 1e-4 * noise(member),
        small_ensemble(m=4), EPOCHS,
    )  # fmt: skip
    assert found.measured == [(4, 2), (4, 3), (4, 4)] and found.snapshots == SnapshotPair(1, 4)
    assert "settled" in found.adaptive["epochs"]["why"]
    assert [trial["late"] for trial in found.adaptive["epochs"]["tried"]] == [3, 4]


def test_a_ranking_that_never_settles_ends_at_the_limit(settle):
    found = settle(lambda member, epoch: noise(epoch), small_ensemble(m=2), EPOCHS)
    assert found.snapshots == SnapshotPair(1, 5) and "limit was reached" in found.adaptive["epochs"]["why"]


def test_the_late_epoch_is_found_with_the_fewest_members(settle):
    found = settle(lambda member, epoch: noise("same"), AUTO, EPOCHS)
    assert found.measured == [(3, 2), (3, 3)] and found.snapshots == SnapshotPair(1, 3) and found.members == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(small_ensemble, m="many"), "m must be a positive whole number or auto"),
        (partial(small_ensemble, m=0), "m must be a positive whole number or auto"),
        (partial(replace, SIZE, start=2), "must start at 3 or more"),
        (partial(replace, SIZE, limit=2), "must start at 3 or more"),
        (partial(replace, SIZE, step=0), "step must be a positive whole number"),
        (partial(replace, SIZE, stability=1.5), "stability must be a number in"),
        (partial(replace, EPOCHS, limit=2), "no two late epochs can be compared"),
        (partial(replace, EPOCHS, overlap=0), "overlap must be a number in"),
    ],
)
def test_impossible_searches_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_auto_needs_scores_that_read_the_ensemble():
    assert SIZE.fewest_members(AUTO, SnapshotPair(1, 2), {GradientLog()}) == 3
    assert SIZE.fewest_members(small_ensemble(m=2), SnapshotPair(1, 2), set()) == 2
    with pytest.raises(UserError, match=r"number of members and the late epoch cannot be found automatically.*gsnr"):
        SIZE.fewest_members(AUTO, EPOCHS, {BaseModelLosses()})


def test_a_grown_ensemble_equals_one_of_that_size(train, records, tokenizer, tmp_path):
    """With real ensembles: nothing is trained twice, and the log is bit for bit that of a fixed size."""
    steps = Steps()
    context = measurement_context(
        records, float64_base_model(tokenizer), tmp_path / "grown", tmp_path / "shared", counting(steps), ensemble=AUTO
    )
    size = AdaptiveSize(start=3, step=1, limit=4, stability=1.0, resamples=20)
    _, settled = measure_settled_evidence({GradientLog()}, context, SnapshotPair(1, 2), size, mean_late_norm, 5)
    costs = settled.reports.ensemble.costs
    assert settled.ensemble.m == 4 and steps.taken == 2 * (2 * STEPS), "two stacks of two epochs each"
    assert costs.trained == 4 * 2 and costs.reused_seconds == 0 and costs.made_seconds > 0
    train("first", small_ensemble(m=3), cache=tmp_path / "parts")
    fixed = train("four", small_ensemble(m=4), cache=tmp_path / "parts")
    assert_identical_logs(fixed, GradientLogReader(tmp_path / "grown" / "gradient_log"), (1, 2))
