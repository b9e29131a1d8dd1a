"""An ensemble on preference rows: its log is that of a loop over pairs; the base model is asked once for each row."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from gradfiltering.data.batches import make_batch
from gradfiltering.data.dataset import Columns
from gradfiltering.ensembles.trained_ensemble import EnsembleCosts
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model_losses import add_reference_nll, measure_losses
from gradfiltering.evidence.ensemble_passes import attach_ensemble
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import DirectPreference, ResponseNLL
from gradfiltering.requests import BaseModelLosses, GradientLog
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.reference.gradients import norm
from tests.reference.preferences import base_log_probabilities, pair_gradients
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import LOG_RTOL, float64_base_model, measurement_context, small_ensemble

OBJECTIVE = DirectPreference(0.2)


@pytest.fixture(scope="module")
def pairs():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    columns = Columns("instruction", "input", "output")
    return TaskSource(9, 3, None, "plain", columns, none, schema="preference", flipped=0.2).load(seed=0)


@pytest.fixture(scope="module")
def base_model(pairs):
    return float64_base_model(train_tokenizer([row["instruction"] + " " + row["chosen"] for row in pairs.rows], 300))


@pytest.fixture
def make_context(pairs, base_model, tmp_path):
    def make(**changes):
        context = measurement_context(
            pairs, base_model, tmp_path / "run", tmp_path / "cache", quiet_trainer,
            objective=OBJECTIVE, build_engine=partial(FusedEngine, objective=OBJECTIVE),
            ensemble=small_ensemble(m=2, **changes),
        )  # fmt: skip
        return replace(context, examples=add_reference_nll(context, context.examples), heldout=None)

    return make


def loop_measurements(context, epoch):
    """[M, N] losses and norms of all pairs under the members after an epoch, by a loop."""
    with attach_ensemble(context, EnsembleCosts(), None) as ensemble:
        adapters = ensemble.load_adapters([0, 1], epoch)
        batch = make_batch(context.examples, np.arange(len(context.examples)), 0, (len(context.examples),))
        base = base_log_probabilities(ensemble.model, batch)
        losses, norms = np.zeros((2, 2, len(context.examples)))
        for member in range(2):
            adapter = {name: stacked[member].double() for name, stacked in adapters.items()}
            for row in range(len(context.examples)):
                loss, gradient = pair_gradients(
                    ensemble.model, adapter, batch.input_ids[row], batch.labels[row], base[row], OBJECTIVE.beta
                )
                losses[member, row], norms[member, row] = loss, norm(gradient)
    return losses, norms


def test_the_snapshot_log_is_that_of_a_loop_over_pairs(make_context):
    context = make_context()
    logs = find_measurer(GradientLog()).measure(GradientLog(), context)
    for epoch, log in ((1, logs.early), (2, logs.late)):
        losses, norms = loop_measurements(context, epoch)
        np.testing.assert_allclose(log.loss, losses, rtol=LOG_RTOL)
        np.testing.assert_allclose(log.grad_norm, norms, rtol=LOG_RTOL)
    assert logs.late.loss.mean() < logs.early.loss.mean() < np.log(2)


def test_online_norms_are_those_of_the_training_steps(make_context):
    context = make_context(collect="online", batch_size=9, bucket_batches=1, lr=1e-12)
    logs = find_measurer(GradientLog()).measure(GradientLog(), context)
    losses, norms = loop_measurements(context, 0)
    np.testing.assert_allclose(logs.early.loss, losses, rtol=LOG_RTOL)
    np.testing.assert_allclose(logs.early.grad_norm, norms, rtol=1e-6)


def test_the_base_model_is_asked_once_for_each_answer(make_context, monkeypatch):
    context = make_context()
    reference = context.examples.reference_nll
    monkeypatch.setattr("gradfiltering.evidence.base_model_losses._compute_losses", None)
    np.testing.assert_array_equal(make_context().examples.reference_nll, reference)
    assert reference.shape == (len(context.examples), 2) and (reference > 0).all()


def test_losses_of_the_base_model_are_those_of_chosen_answers(make_context):
    context = make_context()
    losses = find_measurer(BaseModelLosses()).measure(BaseModelLosses(), context)
    chosen = context.examples.chosen_sequences()
    expected = context.examples.reference_nll[:, 0] / chosen.response_tokens
    np.testing.assert_allclose(losses.row_losses, expected, rtol=1e-12)
    np.testing.assert_array_equal(measure_losses(context, ResponseNLL(), chosen), losses.row_losses)
    held_out = replace(context, heldout=context.examples)
    base_loss = find_measurer(BaseModelLosses()).measure(BaseModelLosses(), held_out).heldout_loss
    assert base_loss == pytest.approx(np.log(2), rel=1e-12)


def test_answers_of_rows_with_one_answer_cannot_be_exchanged():
    columns, none = Columns("instruction", "input", "output"), PlantedDefects(0, 0, 0, 0, 0, 0)
    with pytest.raises(UserError, match="20% of the rows are to be exchanged, and rows of the schema alpaca have one"):
        TaskSource(9, 3, None, "plain", columns, none, flipped=0.2)


def test_the_flipped_pairs_are_known(pairs):
    assert pairs.kinds.count("flipped") == 2 and set(pairs.kinds) == {"clean", "flipped"}
    unflipped = TaskSource(
        9, 3, None, "plain", Columns("instruction", "input", "output"), PlantedDefects(0, 0, 0, 0, 0, 0),
        schema="preference",
    ).load(seed=0)  # fmt: skip
    for row, right, kind in zip(pairs.rows, unflipped.rows, pairs.kinds, strict=True):
        names = ("chosen", "rejected") if kind == "clean" else ("rejected", "chosen")
        assert (row[names[0]], row[names[1]]) == (right["chosen"], right["rejected"])
