"""Members and epochs that are in the cache are not trained again, and nothing else changes by that."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from gradfiltering.ensembles import batch_settings
from gradfiltering.ensembles.member_cache import MemberCache
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from tests.support.disk import files_up_to
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.small_ensembles import ROWS, assert_identical_logs, assert_same_member, small_ensemble

STEPS = -(-ROWS // 4)  # of an epoch


@pytest.fixture(params=["snapshot", "online"])
def collect(request):
    return request.param


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory):
    """Results of runs that were not interrupted, which the tests of killed runs share."""
    return tmp_path_factory.mktemp("whole")


def test_a_larger_ensemble_trains_only_missing_members(train, tmp_path, collect):
    cache, steps = tmp_path / "shared", Steps()
    train("m2", small_ensemble(m=2, collect=collect), cache=cache)
    larger = train("m4", small_ensemble(m=4, collect=collect), cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS and train.report.costs.trained == 2 * 2
    fresh = train("fresh", small_ensemble(m=4, collect=collect))
    for member in range(4):
        assert_same_member(larger, fresh, member)


def test_later_epochs_continue_bit_for_bit(train, tmp_path, collect):
    cache, steps = tmp_path / "shared", Steps()
    train("first", small_ensemble(collect=collect), (1, 2), cache=cache)
    later = train("later", small_ensemble(collect=collect), (2, 4), cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS, "epochs 1 and 2 were trained again"
    assert_identical_logs(later, train("fresh", small_ensemble(collect=collect), (2, 4)), (2, 4))


def test_the_same_again_computes_nothing(train, tmp_path, collect):
    cache, steps = tmp_path / "shared", Steps()
    first = train("first", small_ensemble(collect=collect), cache=cache)
    again = train("again", small_ensemble(collect=collect), cache=cache, trainer=counting(steps))
    assert steps.taken == 0 and train.report.reused and train.report.costs.tokens == 0
    records = [json.loads(path.read_text()) for path in cache.glob("*/*/artifact.json")]
    kept = [
        record["seconds"] for record in records if record["stage"] in ("members", "gradient_log", "ensemble_losses")
    ]
    assert len(kept) > 4 and train.report.costs.reused_seconds == pytest.approx(sum(kept))
    assert_identical_logs(first, again, (1, 2))
    for name in ("trajectory.parquet", "adapters/member=01/epoch=02/adapter_model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_snapshot_of_an_epoch_trained_before_costs_one_pass(train, tmp_path):
    cache = tmp_path / "shared"
    train("first", pair=(1, 3), cache=cache)
    train("second", pair=(2, 3), cache=cache)
    assert train.report.costs.trained == 0 and train.report.costs.logged == 3 * 2  # rows and held-out rows of epoch 2
    train("zero", pair=(0, 2), cache=cache)
    assert train.report.costs.trained == 0 and train.report.costs.logged == 3 * 2


@pytest.mark.parametrize(
    ("change", "trains"),
    [
        ({"lr": 0.02}, True),
        ({"batch_size": 5}, True),
        ({"checkpoint_minutes": 3}, False),
        ({"m": 2}, False),
        ({"collect": "online"}, False),
    ],
)
def test_only_relevant_settings_train_a_member_again(train, tmp_path, change, trains):
    cache = tmp_path / "shared"
    train("first", cache=cache)
    train("changed", small_ensemble(**change), cache=cache)
    assert bool(train.report.costs.trained) is trains


def test_norms_of_steps_are_those_of_a_run_for_them_alone(train, tmp_path):
    cache, steps = tmp_path / "shared", Steps()
    train("snapshots", cache=cache)
    online = train("online", small_ensemble(collect="online"), cache=cache, trainer=counting(steps))
    assert steps.taken == 0 and train.report.costs.logged == 0
    assert_identical_logs(online, train("fresh", small_ensemble(collect="online")), (1, 2))


def test_another_seed_trains_again(train, tmp_path):
    train("first", cache=tmp_path / "shared")
    train("other", seed=1, cache=tmp_path / "shared")
    assert train.report.costs.trained == 3 * 2


@pytest.mark.parametrize("killed_at", [STEPS + 3, STEPS, 2], ids=["within epoch 2", "between", "within epoch 1"])
def test_a_killed_run_resumes_and_ends_the_same(train, tmp_path, whole_cache, collect, killed_at):
    cache, how = tmp_path / "shared", small_ensemble(collect=collect, checkpoint_minutes=1e-9)
    with pytest.raises(KilledHere):
        train("killed", how, cache=cache, trainer=counting(Steps(killed_at)))
    steps = Steps()
    resumed = train("resumed", how, cache=cache, trainer=counting(steps))
    assert steps.taken == 2 * STEPS - killed_at, "steps that had been taken were taken again"
    whole = train("whole", replace(how, checkpoint_minutes=10), cache=whole_cache)
    assert_identical_logs(resumed, whole, (1, 2))
    paths = [pq.read_table(tmp_path / run / "trajectory.parquet").to_pylist() for run in ("resumed", "whole")]
    assert paths[0] == paths[1]
    assert not any((cache / "interrupted").iterdir())


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_run_killed_while_storing_trains_no_member_again(train, tmp_path, whole_cache, collect, kept, monkeypatch):
    cache, how, keep, done = tmp_path / "shared", small_ensemble(collect=collect), MemberCache.commit_member, []

    def keeping(*arguments, **keywords):
        if len(done) == kept:
            raise KilledHere
        done.append(keep(*arguments, **keywords))

    with monkeypatch.context() as patched, pytest.raises(KilledHere):
        patched.setattr(MemberCache, "commit_member", keeping)
        train("killed", how, cache=cache)
    steps = Steps()
    resumed = train("resumed", how, cache=cache, trainer=counting(steps))
    assert steps.taken == STEPS, "only epoch 2 is left, for all members in one stack"
    assert_identical_logs(resumed, train("whole", how, cache=whole_cache), (1, 2))
    assert not any((cache / "interrupted").iterdir())


def test_a_full_disk_leaves_the_cache_usable(train, tmp_path, collect):
    cache = tmp_path / "shared"
    with (
        files_up_to(10_000),
        pytest.raises(UserError, match=r"cannot write .*(members|interrupted).*Free some space.*cache\.path="),
    ):
        train("full", small_ensemble(collect=collect), cache=cache)
    assert not list(cache.rglob("*.part")) and not list(cache.glob("members/*")), "half a member stayed behind"
    again = train("again", small_ensemble(collect=collect), cache=cache)
    assert train.report.costs.trained == 3 * 2
    assert_identical_logs(again, train("fresh", small_ensemble(collect=collect)), (1, 2))


def test_a_damaged_checkpoint_is_not_gone_on_from(train, tmp_path, capsys):
    cache, how = tmp_path / "shared", small_ensemble(checkpoint_minutes=1e-9)
    with pytest.raises(KilledHere):
        train("killed", how, cache=cache, trainer=counting(Steps(3)))
    (file,) = (cache / "interrupted").glob("*/checkpoint.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    resumed = train("resumed", how, cache=cache)
    assert "checkpoint.safetensors is not what was written" in " ".join(capsys.readouterr().out.split())
    assert_identical_logs(resumed, train("fresh", how), (1, 2))


def test_a_pruned_epoch_is_trained_from_the_one_before(train, tmp_path):
    cache, steps = tmp_path / "shared", Steps()
    first = train("first", pair=(2, 3), cache=cache)
    for record in (cache / "members").glob("*/artifact.json"):
        if '"epoch": 2' in record.read_text():
            record.unlink()
    again = train("again", pair=(2, 3), cache=cache, trainer=counting(steps))
    assert steps.taken == STEPS
    assert_identical_logs(first, again, (2, 3))
    assert Cache(cache).folder.is_dir()


def test_fitting_tokens_are_tried_once_for_each_stack_size(train, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(batch_settings, "_fitting_tokens", {})
    monkeypatch.setattr(batch_settings, "find_fitting_tokens", lambda *_: tried.append(None) or 4096)
    for name, how, seed in (
        ("one", small_ensemble(), 0),
        ("two", small_ensemble(lr=0.02), 1),
        ("three", small_ensemble(m=2), 0),
    ):
        train(name, how, seed=seed, tokens="auto")
    assert len(tried) == 2
    assert train.report.costs.batch_tokens == 4096
