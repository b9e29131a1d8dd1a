"""Losses of held-out rows: measured without gradients, and the same numbers as with them."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from gradfiltering.data.encoder import Encoder
from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.evidence.ensemble_passes import EnsemblePasses, attach_ensemble
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.requests import GradientLog
from gradfiltering.runs.cache import Cache
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import (
    LOG_RTOL,
    SHAPE,
    ensemble_of_kind,
    float64_base_model,
    measurement_context,
    small_ensemble,
)  # fmt: skip

HELDOUT_ROWS = 5
KINDS = {
    "lora": small_ensemble(),
    "online": small_ensemble(collect="online"),
    "bootstrap": ensemble_of_kind(BootstrapEnsemble),
    "snapshots": ensemble_of_kind(SnapshotEnsemble),
    "dropout": ensemble_of_kind(DropoutEnsemble, dropout=0.5, train_dropout=0.0),
}


@pytest.fixture
def measure(records, tokenizer, tmp_path):
    """Measures the gradient log in a run folder, and returns the context with its reports."""
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache"))

    def run(name, ensemble=None, cache="cache", **changes):
        context = measurement_context(
            records, float64_base_model(tokenizer), tmp_path / name, tmp_path / cache, quiet_trainer,
            encoder=encoder, ensemble=ensemble or small_ensemble(), **changes,
        )  # fmt: skip
        find_measurer(GradientLog()).measure(GradientLog(), context)
        return context

    return run


def heldout_log(context, epoch):
    return context.run_folder.read_gradient_log(heldout=True).epoch(epoch)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_pass_with_gradients(measure, kind):
    alone, whole = (
        measure(f"{with_norms}", KINDS[kind], cache=f"{with_norms}", heldout_norms=with_norms)
        for with_norms in (False, True)
    )
    for epoch in (1, 2):
        losses = heldout_log(whole, epoch).loss
        assert losses.shape == (3, HELDOUT_ROWS)
        np.testing.assert_allclose(heldout_log(alone, epoch).loss, losses, rtol=LOG_RTOL)
    summaries = [context.reports.ensemble.heldout_losses for context in (alone, whole)]
    assert summaries[0] == pytest.approx(summaries[1], rel=LOG_RTOL)


def test_norms_are_measured_at_the_late_snapshot_where_they_are_wanted(measure):
    alone, whole = measure("alone"), measure("whole", cache="other", heldout_norms=True)
    assert not heldout_log(alone, 1).has_norms and not heldout_log(alone, 2).has_norms
    assert not heldout_log(whole, 1).has_norms and heldout_log(whole, 2).has_norms
    schemas = [
        pq.read_schema(context.run_folder.path / "gradient_log_heldout/member=00/epoch=02/part-0.parquet")
        for context in (alone, whole)
    ]
    assert schemas[0] == schemas[1]


def test_forward_passes_are_counted_apart(measure):
    costs = [
        measure(f"{with_norms}", cache=f"{with_norms}", heldout_norms=with_norms).reports.ensemble.costs
        for with_norms in (False, True)
    ]
    assert costs[0].forward_tokens == 2 * costs[1].forward_tokens > 0
    assert sum(costs[0].tokens + costs[0].forward_tokens for _ in range(1)) == costs[1].tokens + costs[1].forward_tokens
    assert costs[0].logged == costs[1].logged == 3 * 2 * 2


def test_a_cached_log_serves_where_losses_are_wanted(measure):
    whole = measure("whole", snapshots=SnapshotPair(0, 2), heldout_norms=True)
    again = measure("again", snapshots=SnapshotPair(2, 3))
    costs = again.reports.ensemble.costs
    assert costs.trained == 3 and costs.logged == 3 * 2, "of epoch 3 alone"
    np.testing.assert_array_equal(heldout_log(again, 2).loss, heldout_log(whole, 2).loss)


def test_norms_that_are_wanted_later_cost_one_pass(measure):
    measure("alone")
    later = measure("later", heldout_norms=True)
    assert later.reports.ensemble.costs.trained == 0 and later.reports.ensemble.costs.logged == 3
    assert heldout_log(later, 2).has_norms
    assert measure("again").reports.ensemble.reused


def test_members_that_are_measured_alike_are_measured_once(measure):
    context = measure("run", KINDS["snapshots"], snapshots=SnapshotPair(0, 1))
    with attach_ensemble(context, context.reports.ensemble.costs, context.heldout) as trained_ensemble:
        passes = EnsemblePasses(trained_ensemble, context.heldout, "held-out rows")
        losses = passes.find_losses(trained_ensemble.settings.member_ids, 0)
    assert len(losses) == 3 and len({result.path for result in losses.values()}) == 1
