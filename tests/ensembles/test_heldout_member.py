"""One more member on a split of its own: the split, its losses, and that nothing else of the run knows of it."""

from dataclasses import replace

import numpy as np
import pytest

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.schemas import Columns
from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.heldout_member import HeldoutMember
from gradfiltering.ensembles.snapshot_ensemble import SnapshotEnsemble
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.evidence import base_model_losses
from gradfiltering.evidence.base_model_losses import measure_losses
from gradfiltering.evidence.heldout_member import measure_heldout_member
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.requests import GradientLog
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.support.interruption import KilledHere, Steps, counting
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import (
    SHAPE,
    ensemble_of_kind,
    float64_base_model,
    measurement_context,
    small_ensemble,
)  # fmt: skip

ROWS = 40
SETTINGS = HeldoutMember()


@pytest.fixture(scope="module")
def dataset():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    return TaskSource(ROWS, 0, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)


@pytest.fixture(scope="module")
def tokenizer(dataset):
    return train_tokenizer([row["instruction"] + " " + row["output"] for row in dataset.rows], SHAPE["vocabulary"])


@pytest.fixture
def make_context(dataset, tokenizer, tmp_path):
    def make(name="run", trainer=quiet_trainer, cache="cache", **changes):
        return measurement_context(
            dataset, float64_base_model(tokenizer), tmp_path / name, tmp_path / cache, trainer, **changes
        )

    return make


@pytest.fixture
def examples(dataset, tokenizer, tmp_path):
    return Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache")).encode(dataset)


def measure(context, settings=SETTINGS):
    split = settings.split(context.examples, False, context.seed)
    return measure_heldout_member(context, split)


def test_split_takes_the_share_of_rows_and_no_row_twice(examples):
    training, heldout = replace(SETTINGS, share=0.25).split(examples, False, 0)
    assert len(heldout) == 10 and len(training) == 30
    assert sorted([*training.example_ids, *heldout.example_ids]) == examples.example_ids.tolist()
    again = replace(SETTINGS, share=0.25).split(examples, False, 0)
    np.testing.assert_array_equal(again.heldout.example_ids, heldout.example_ids)
    other = replace(SETTINGS, share=0.25).split(examples, False, 1)
    assert not np.array_equal(other.heldout.example_ids, heldout.example_ids)


def test_at_least_eight_rows_are_held_out(examples):
    assert len(SETTINGS.split(examples, False, 0).heldout) == 8  # a tenth would be four


@pytest.mark.parametrize("seed", range(5))
def test_exact_copies_stand_on_one_side(make_records, tokenizer, tmp_path, seed):
    texts = [(f"Say {number // 3}.", "", f"{number // 3}") for number in range(90)]  # each row three times
    copies = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache")).encode(make_records(texts))
    training, heldout = replace(SETTINGS, share=0.2).split(copies, False, seed)
    assert len(heldout) == 18
    assert {row_id // 3 for row_id in training.example_ids}.isdisjoint(row_id // 3 for row_id in heldout.example_ids)


@pytest.mark.parametrize(
    ("settings", "rows", "has_heldout_rows", "expected"),
    [
        ({}, 1000, False, 100), ({}, 1000, True, 0), ({}, 32, False, 8), ({}, 31, False, 0), ({}, 85, False, 9),
        ({"train": False}, 1000, False, 0), ({"train": True}, 1000, True, 100), ({"share": 0.5}, 48, False, 24),
        ({"share": 0.5}, 46, False, 0),
    ],
)  # fmt: skip
def test_rows_that_are_held_out_are_counted_for_the_plan(settings, rows, has_heldout_rows, expected):
    assert HeldoutMember(**settings).count_heldout_rows(rows, has_heldout_rows) == expected


def test_too_few_rows_are_refused_only_where_it_was_asked_for(make_records, tokenizer, tmp_path):
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache"))
    for rows in ([("Say it.", "", f"{number}") for number in range(20)], [("Say it.", "", "right")] * 60):
        few = encoder.encode(make_records(rows))
        assert SETTINGS.split(few, False, 0) is None
        with pytest.raises(UserError, match="too few") as refusal:
            HeldoutMember(train=True).split(few, False, 0)
        assert "train" in refusal.value.arguments


def test_losses_are_those_of_a_member_trained_on_the_other_rows(make_context):
    context = make_context()
    report = measure(context)
    split = SETTINGS.split(context.examples, False, 0)
    assert (report.training_rows, report.heldout_rows) == (32, 8)
    all_losses = measure_losses(context, context.objective, context.examples)
    is_heldout = np.isin(context.examples.example_ids, split.heldout.example_ids)
    assert report.base_loss == pytest.approx(all_losses[is_heldout].mean(), rel=1e-12)
    assert report.losses[2] < report.losses[1] < report.base_loss
    smaller = replace(context, ensemble=small_ensemble(m=1))
    assert measure_heldout_member(smaller, split).losses == report.losses


@pytest.mark.parametrize("are_all_measured", [False, True])
def test_losses_of_the_base_model_are_measured_once(make_context, monkeypatch, are_all_measured):
    context, measured_rows, compute = make_context(), [], base_model_losses._compute_losses

    def count_rows(context, objective, examples):
        measured_rows.append(len(examples))
        return compute(context, objective, examples)

    monkeypatch.setattr(base_model_losses, "_compute_losses", count_rows)
    split = SETTINGS.split(context.examples, False, 0)
    if are_all_measured:
        measure_losses(context, context.objective, context.examples)
    loss = base_model_losses.measure_base_loss_of_part(context, split.heldout)
    assert measured_rows == [ROWS if are_all_measured else 8]
    assert loss == pytest.approx(compute(context, context.objective, split.heldout).mean(), rel=1e-12)


def test_the_ensemble_is_the_same_with_and_without_the_extra_member(make_context, tmp_path):
    logs = {}
    for name in ("without", "with"):
        context = make_context(name, cache=f"cache of {name}")
        if name == "with":
            measure(context)
        logs[name] = find_measurer(GradientLog()).measure(GradientLog(), context)
        assert len(context.reports.ensemble.heldout_losses) == 0 and context.reports.ensemble.costs.trained == 3 * 2
    np.testing.assert_array_equal(logs["with"].late.grad_norm, logs["without"].late.grad_norm)
    members = sorted(path.name for path in (tmp_path / "with" / "gradient_log").iterdir())
    assert members == ["member=00", "member=01", "member=02"]


def test_a_second_run_finds_the_member_in_the_cache(make_context):
    steps = Steps()
    first = measure(make_context("first", trainer=counting(steps)))
    assert steps.taken == 2 * 8 and first.costs.trained == 2 and first.costs.logged == 2 and not first.reused
    again = measure(make_context("again", trainer=counting(steps)))
    assert steps.taken == 2 * 8 and again.reused and again.losses == first.losses
    later = measure(make_context("later", trainer=counting(steps), snapshots=SnapshotPair(2, 3)))
    assert steps.taken == 3 * 8 and later.losses[2] == first.losses[2]


def test_an_interrupted_member_goes_on_where_it_was(make_context):
    often = small_ensemble(checkpoint_minutes=1e-9)
    whole = measure(make_context("whole", cache="other", ensemble=often))
    with pytest.raises(KilledHere):
        measure(make_context("killed", trainer=counting(Steps(until=13)), ensemble=often))
    steps = Steps()
    resumed = measure(make_context("resumed", trainer=counting(steps), ensemble=often))
    assert steps.taken == 2 * 8 - 13 and resumed.losses == whole.losses


@pytest.mark.parametrize(
    "settings",
    [
        small_ensemble(collect="online"),
        ensemble_of_kind(BootstrapEnsemble),
        ensemble_of_kind(SnapshotEnsemble),
        ensemble_of_kind(DropoutEnsemble, dropout=0.5, train_dropout=0.0),
        ensemble_of_kind(DropoutEnsemble, dropout=0.5, train_dropout=0.5),
    ],
    ids=["online", "bootstrap", "snapshots", "dropout", "train_dropout"],
)
def test_every_kind_of_ensemble_has_such_a_member(make_context, settings):
    report = measure(make_context(ensemble=settings))
    assert report.costs.trained == 2 and report.losses[2] < report.base_loss
    plain = measure(make_context(ensemble=small_ensemble()))
    same_training = settings.collect == "online" or (
        isinstance(settings, SnapshotEnsemble | DropoutEnsemble) and not getattr(settings, "train_dropout", 0)
    )
    assert (report.losses == plain.losses) == same_training
