"""`epochs=loss_fall`: snapshots by the share of the fall in held-out loss."""

from dataclasses import replace

import pytest

from gradfiltering.ensembles.heldout_member import HeldoutMember
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.adaptive_size import AdaptiveSize, measure_settled_evidence
from gradfiltering.evidence.heldout_member import measure_heldout_member
from gradfiltering.evidence.loss_fall import LossFallSnapshots
from gradfiltering.requests import GradientLog
from gradfiltering.runs.gradient_log import GradientLogReader
from tests.ensembles.test_heldout_member import dataset, make_context, tokenizer  # noqa: F401 - fixtures
from tests.support.interruption import Steps, counting
from tests.support.small_ensembles import assert_identical_logs, small_ensemble

SNAPSHOTS = LossFallSnapshots(early=0.4, late=0.8, epochs=2, measurements=6)


def settle(context, snapshots):
    return measure_settled_evidence({GradientLog()}, context, snapshots, AdaptiveSize(), lambda evidence: None, 4)


def test_updates_grow_by_an_equal_factor_to_the_last():
    assert LossFallSnapshots(epochs=2, measurements=5).list_updates(128) == [1, 4, 16, 64, 256]
    assert LossFallSnapshots(epochs=1, measurements=12).list_updates(3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((0.5, 0.9), (4, 16)), ((0.1, 0.5), (1, 4)), ((0.1, 1.0), (1, 64)), ((0.6, 0.95), (16, 64))],
)
def test_a_share_has_happened_at_the_first_update_by_which_it_had(shares, expected):
    losses = {0: 3.0, 1: 2.8, 4: 2.5, 16: 2.1, 64: 2.0, 256: 2.4}  # it rises again at the end
    early, late = shares
    assert LossFallSnapshots(early=early, late=late).choose_pair(losses) == SnapshotPair(*expected, "update")


def test_a_loss_that_never_fell_has_no_share():
    with pytest.raises(UserError, match=r"never fell below 3\.000"):
        SNAPSHOTS.choose_pair({0: 3.0, 1: 3.1, 4: 3.2})


def test_two_shares_by_one_update_are_refused():
    with pytest.raises(UserError, match=r"40% and 80%.*by the same update, 4.*more often"):
        SNAPSHOTS.choose_pair({0: 3.0, 1: 2.9, 4: 2.0, 16: 2.0})


@pytest.mark.parametrize(
    ("settings", "words"), [({"early": 0.9, "late": 0.9}, "smaller"), ({"measurements": 2}, "3 or more")]
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        LossFallSnapshots(**settings)


def test_the_log_is_of_the_updates_that_were_found(make_context, tmp_path):  # noqa: F811
    context = make_context()
    _, settled = settle(context, SNAPSHOTS)
    finding = context.reports.ensemble.adaptive["epochs"]
    pair = SnapshotPair(finding["early"], finding["late"], "update")
    assert settled.snapshots == pair
    assert [point["update"] for point in finding["tried"]] == [0, *SNAPSHOTS.list_updates(8)]  # 32 rows, 4 at a time
    losses = {point["update"]: point["heldout_loss"] for point in finding["tried"]}
    assert SNAPSHOTS.choose_pair(losses) == pair
    settle(make_context("plain", cache="other"), pair)
    logs = [GradientLogReader(tmp_path / name / "gradient_log") for name in ("run", "plain")]
    assert_identical_logs(*logs, (pair.early, pair.late))


def test_the_member_that_goes_ahead_is_that_of_the_heldout_loss(make_context):  # noqa: F811
    context = make_context()
    _, settled = settle(context, SNAPSHOTS)
    steps = Steps()
    split = HeldoutMember(share=SNAPSHOTS.heldout_share).split(context.examples, False, context.seed)
    report = measure_heldout_member(replace(settled, build_trainer=counting(steps)), split)
    assert steps.taken == 0
    curve = {point["update"]: point["heldout_loss"] for point in context.reports.ensemble.adaptive["epochs"]["tried"]}
    assert report.losses == {update: curve[update] for update in report.losses} and report.base_loss == curve[0]


def test_a_second_run_trains_nothing(make_context):  # noqa: F811
    settle(make_context(), SNAPSHOTS)
    steps = Steps()
    settle(make_context("again", trainer=counting(steps)), SNAPSHOTS)
    assert steps.taken == 0


def test_members_are_searched_for_at_the_found_updates(make_context):  # noqa: F811
    context = make_context(ensemble=small_ensemble(m="auto"))
    size = AdaptiveSize(start=3, step=1, limit=4, stability=1.0, resamples=20)

    def mean_norm(evidence):
        return evidence.get(GradientLog()).late.grad_norm.mean(0).astype(float)

    _, settled = measure_settled_evidence({GradientLog()}, context, SNAPSHOTS, size, mean_norm, 4)
    assert settled.ensemble.m in (3, 4) and settled.snapshots.unit == "update"
    assert {"members", "epochs"} == set(context.reports.ensemble.adaptive)
