"""`ensemble.m=auto` and `epochs=auto`: when they stop, what they say, and what they cost."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tests.ensembles.test_reuse import STEPS, Steps, counting, identical
from tests.support.small_ensembles import settings

from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence.adaptive_size import AdaptiveSize, SettlingEpochs, settle, total
from gradfiltering.evidence.gradient_log import LOG, ProxyResult
from gradfiltering.requests import BaseModelLosses, EpochLog, GradientLog
from gradfiltering.runs.gradient_log import FILE, leaf, write_member
from gradfiltering.seeding import numpy_rng

ROWS, WANTED = 100, 10
SIZE = AdaptiveSize(start=3, step=2, limit=8, stability=0.9, resamples=50)
EPOCHS = SettlingEpochs(early=1, limit=5, overlap=0.8, correlation=0.95)
AUTO = settings(m="auto")


def result(settings, epochs, **changes):
    made = ProxyResult(settings.m, [epochs.early, epochs.late], 1.0, 10, None, 2, 1, 5.0, {}, {}, 7, 4.0)
    return replace(made, **changes)


@pytest.fixture
def planted(tmp_path):
    """Makes an ensemble whose norms at an epoch are planted: `norms(member, epoch)` -> [N]."""

    def plant(norms):
        def make(settings, epochs):
            for epoch in (epochs.early, epochs.late):
                values = np.stack([norms(member, epoch) for member in range(settings.m)])
                log = EpochLog(np.arange(ROWS), values, values, np.ones(ROWS, np.int32))
                for member in range(settings.m):
                    place = leaf(tmp_path / LOG, member, epoch)
                    place.mkdir(parents=True, exist_ok=True)
                    write_member(place / FILE, log, member)
            make.asked.append((settings.m, epochs.late))
            return result(settings, epochs)

        make.asked = []
        return make

    plant.workspace = SimpleNamespace(run_dir=tmp_path, seed=0)
    return plant


def mean_late(results):
    return results[GradientLog()].late.grad_norm.mean(0).astype(float)


def noise(*name):
    return numpy_rng("planted", *name).random(ROWS)


def test_members_that_agree_at_once_stay_at_the_start(planted):
    make = planted(lambda member, epoch: noise("same"))
    found = settle(make, AUTO, SnapshotPair(1, 2), SIZE, mean_late, WANTED, planted.workspace)
    assert make.asked == [(3, 2)] and found.members == 3
    assert found.adaptive["members"]["m"] == 3 and "stable" in found.adaptive["members"]["why"]
    assert found.adaptive["members"]["tried"] == [{"m": 3, "stability": 1.0}]


def test_members_of_pure_noise_go_to_the_limit(planted):
    make = planted(lambda member, epoch: noise(member, epoch))
    found = settle(make, AUTO, SnapshotPair(1, 2), SIZE, mean_late, WANTED, planted.workspace)
    assert [members for members, _ in make.asked] == [3, 5, 7, 8], "the last step goes to the limit, not beyond"
    assert found.adaptive["members"]["m"] == 8 and "adaptive.limit" in found.adaptive["members"]["why"]


def test_more_members_are_asked_for_only_until_the_choice_is_stable(planted):
    share = np.linspace(0, 1, ROWS)
    make = planted(lambda member, epoch: share + 0.4 * noise(member, epoch))
    found = settle(make, AUTO, SnapshotPair(1, 2), replace(SIZE, stability=0.6), mean_late, WANTED, planted.workspace)
    tried = found.adaptive["members"]["tried"]
    assert [one["stability"] >= 0.6 for one in tried] == [False] * (len(tried) - 1) + [True]


def test_epochs_stop_at_the_first_that_hardly_changes_the_ranking(planted):
    make = planted(lambda member, epoch: noise("settled" if epoch >= 3 else epoch) + 1e-4 * noise(member))
    found = settle(make, settings(m=4), EPOCHS, SIZE, mean_late, WANTED, planted.workspace)
    assert make.asked == [(4, 2), (4, 3), (4, 4)] and found.pair == SnapshotPair(1, 4)
    assert "settled" in found.adaptive["epochs"]["why"]
    assert [one["late"] for one in found.adaptive["epochs"]["tried"]] == [3, 4]


def test_a_ranking_that_never_settles_ends_at_the_limit(planted):
    make = planted(lambda member, epoch: noise(epoch))
    found = settle(make, settings(m=2), EPOCHS, SIZE, mean_late, WANTED, planted.workspace)
    assert found.pair == SnapshotPair(1, 5) and "epochs.limit" in found.adaptive["epochs"]["why"]


def test_both_at_once_find_the_epoch_with_the_fewest_members_first(planted):
    make = planted(lambda member, epoch: noise("same"))
    found = settle(make, AUTO, EPOCHS, SIZE, mean_late, WANTED, planted.workspace)
    assert make.asked == [(3, 2), (3, 3)] and found.pair == SnapshotPair(1, 3) and found.members == 3


def test_numbers_are_taken_as_they_are_and_nothing_is_scored(planted):
    make = planted(lambda member, epoch: noise(member))
    found = settle(make, settings(m=2), SnapshotPair(0, 2), SIZE, None, WANTED, planted.workspace)
    assert make.asked == [(2, 2)] and found.adaptive == {}


def test_rounds_add_up_and_what_one_trains_is_not_reused_by_the_next():
    first = result(settings(m=3), SnapshotPair(1, 2), reused_seconds=6.0, made_seconds=4.0, batch_tokens=64)
    second = result(settings(m=5), SnapshotPair(1, 2), reused_seconds=10.0, made_seconds=2.0)
    both = total([first, second])
    assert (both.members, both.trained, both.logged, both.tokens, both.flops) == (5, 4, 2, 20, 14)
    assert both.reused_seconds == 6.0 and both.made_seconds == 6.0 and both.batch_tokens == 64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(settings, m="many"), "ensemble.m=many"), (partial(settings, m=0), "ensemble.m=0"),
        (partial(replace, SIZE, start=2), "adaptive.start=2"), (partial(replace, SIZE, limit=2), "adaptive.limit=2"),
        (partial(replace, SIZE, step=0), "adaptive.step=0"),
        (partial(replace, SIZE, stability=1.5), "adaptive.stability=1.5"),
        (partial(replace, EPOCHS, limit=2), "epochs.limit=2"), (partial(replace, EPOCHS, overlap=0), "epochs.overlap"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_auto_needs_scores_that_look_at_the_ensemble():
    assert SIZE.fewest(AUTO, SnapshotPair(1, 2), frozenset({GradientLog()})) == 3
    assert SIZE.fewest(settings(m=2), SnapshotPair(1, 2), frozenset()) == 2
    with pytest.raises(UserError, match=r"ensemble\.m=auto and epochs=auto.*scorer=gsnr"):
        SIZE.fewest(AUTO, EPOCHS, frozenset({BaseModelLosses()}))


def test_a_grown_ensemble_is_the_one_asked_for_at_once(train, tmp_path):
    """With the real proxy stage: nothing is trained twice, and the log is bit for bit that of a fixed size."""
    steps = Steps()

    def make(settings, epochs):
        train("grown", settings, (epochs.early, epochs.late), cache=tmp_path / "shared", trainer=counting(steps))
        return train.result

    size = AdaptiveSize(start=3, step=1, limit=4, stability=1.0, resamples=20)
    workspace = SimpleNamespace(run_dir=tmp_path / "grown", seed=0)
    found = settle(make, AUTO, SnapshotPair(1, 2), size, mean_late, 5, workspace)
    assert found.members == 4 and steps.taken == 2 * (2 * STEPS), "two stacks of two epochs each"
    assert found.trained == 4 * 2 and found.reused_seconds == pytest.approx(0, abs=1e-9)
    train("first", settings(m=3), cache=tmp_path / "parts")
    identical(
        train("four", settings(m=4), cache=tmp_path / "parts"),
        train("grown", settings(m=4), cache=tmp_path / "shared"),
        (1, 2),
    )
