"""Gradients at checkpoints: against explicit vectors, from the cache, and no more of them than are requested."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from gradfiltering.data.encoder import Encoder
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.errors import UserError
from gradfiltering.evidence.measurers import check_requests, measure_evidence
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import TaskGradients
from gradfiltering.runs.cache import Cache
from gradfiltering.scorers.less import LESS
from tests.reference import less as reference
from tests.reference.gradients import LoopEngine
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import (
    ROWS,
    SHAPE,
    float64_base_model,
    measurement_context,
    small_ensemble,
)

RTOL = 1e-5  # projections are stored in float32
WIDTH = 24
REQUEST = TaskGradients((1, 2), 1, None, "source")
ENSEMBLE = small_ensemble(m=3)


@pytest.fixture
def measure(records, tokenizer, tmp_path):
    """Measures requests; `measure.report` tells what that cost."""
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache"))

    def run(*requests, cache="one", engine=FusedEngine, tokens=4096, ensemble=ENSEMBLE):
        requests = requests or (REQUEST,)
        context = measurement_context(
            records, float64_base_model(tokenizer), tmp_path / "run", tmp_path / cache, quiet_trainer,
            encoder=encoder, ensemble=ensemble, build_engine=partial(engine, objective=ResponseNLL()),
            batches=BatchSettings(tokens, 0), projection=Projection(WIDTH, 3),
        )  # fmt: skip
        evidence = measure_evidence(requests, context)
        run.report, run.base_model, run.examples = context.reports.task_gradients, context.base_model, context.examples
        run.heldout, run.evidence = encoder.encode_heldout(records), evidence
        return evidence.get(requests[0])

    return run


def stored_state(cache, epoch, member=0):
    for record in sorted((cache / "members").glob("*/artifact.json")):
        key = json.loads(record.read_text("utf-8"))["key"]
        if (key["member"], key["epoch"]) == (member, epoch):
            return StackState.read(record.parent / "state.safetensors")
    raise AssertionError(f"no member {member} at epoch {epoch}")


def explicit_vectors(measure, state):
    """Projected directions of torch.optim.Adam for all rows, and projected gradients of the held-out rows."""
    model = ENSEMBLE.lora.attach(measure.base_model.model)
    own = {name: value[0] for name, value in state.adapters.items()}
    moments = {kind: {name: value[0] for name, value in of.items()} for kind, of in state.moments.items()}
    dense = reference.matrix(Projection(WIDTH, 3), {name: value.shape for name, value in own.items()})
    rows = [
        reference.adam_direction(
            own, moments, state.steps, reference.row_gradient(model, own, row), ENSEMBLE.betas, ENSEMBLE.eps
        ) @ dense
        for row in measure.examples.table
    ]  # fmt: skip
    heldout = [reference.plain_gradient(model, own, row) @ dense for row in measure.heldout.table]
    model.unload()
    return rows, heldout


def test_gradients_and_score_equal_torchs_adam(measure, records, tmp_path):
    found = measure()
    rows, heldout = [], []
    for place, epoch in enumerate(REQUEST.checkpoints):
        own, others = explicit_vectors(measure, stored_state(tmp_path / "one", epoch))
        np.testing.assert_allclose(found.row_directions[place][0], torch.stack(own), rtol=RTOL, atol=RTOL)
        np.testing.assert_allclose(found.validation_gradients[place][0], torch.stack(others), rtol=RTOL, atol=RTOL)
        rows.append(own)
        heldout.append(others)
    tasks = [records.heldout[int(place)]["source"] for place in measure.heldout.example_ids]
    assert found.validation_tasks.tolist() == tasks and len(set(tasks)) > 1
    scores = LESS([1, 2], 1, None, "source", "max").score(measure.evidence)
    expected = np.asarray(reference.influences(rows, heldout, tasks, found.learning_rates))
    np.testing.assert_allclose(scores.score, expected.max(1), rtol=1e-4, atol=1e-6)
    for task, name in enumerate(sorted(set(tasks))):
        np.testing.assert_allclose(scores.columns[f"influence_{name}"], expected[:, task], rtol=1e-4, atol=1e-6)


def test_members_that_are_not_trained_ones_are_refused():
    passes = DropoutEnsemble(**{**vars(ENSEMBLE), "dropout": 0.1, "train_dropout": 0.0})
    with pytest.raises(UserError, match=r"DropoutEnsemble with gradients of 1 members.*LoRA or bootstrap"):
        check_requests({REQUEST}, passes)


def test_rates_are_those_of_the_epochs_own_steps(measure):
    """6 steps an epoch, the first 3 of them warming up."""
    np.testing.assert_allclose(measure().learning_rates, [0.01 * (1 / 3 + 2 / 3 + 4) / 6, 0.01], rtol=1e-12)


def assert_same_gradients(one, other, rtol=RTOL):
    for name in ("row_directions", "validation_gradients"):
        for ours, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=rtol, atol=RTOL, err_msg=name)


@pytest.mark.parametrize(("engine", "tokens"), [(FusedEngine, 100), (VmapEngine, 4096), (LoopEngine, 4096)])
def test_neither_batches_nor_the_engine_matter(measure, engine, tokens):
    need = TaskGradients((1,), 1, None, None)
    assert_same_gradients(measure(need), measure(need, cache="other", engine=engine, tokens=tokens))


def test_the_same_again_computes_nothing(measure, tmp_path):
    first = measure()
    assert (measure.report.costs.trained, measure.report.costs.logged) == (2, 4) and not measure.report.reused
    again = measure()
    assert measure.report.reused and measure.report.costs.tokens == 0 and measure.report.costs.reused_seconds > 0
    for name in ("row_directions", "validation_gradients"):
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(getattr(first, name), getattr(again, name), strict=True))
    made = sorted((tmp_path / "run" / "influence").rglob("projections.npy"))
    assert [path.relative_to(tmp_path / "run" / "influence").parent.as_posix() for path in made] == [
        f"{part}/member=00/epoch=0{epoch}" for part in ("rows", "validation") for epoch in (1, 2)
    ]


def test_only_what_is_new_is_computed(measure, tmp_path):
    measure()
    later = TaskGradients((2, 3), 1, None, "source")
    measure(later)
    assert (measure.report.costs.trained, measure.report.costs.logged) == (1, 2), "epoch 3 alone is new"
    several = TaskGradients((1, 2), 2, None, "source")
    measure(several)
    assert (measure.report.costs.trained, measure.report.costs.logged) == (2, 4), "member 1 alone is new"
    rows = [{"instruction": "Say yes.", "input": "", "output": "Yes.", "skill": "assent"}]
    (tmp_path / "own.json").write_text(json.dumps(rows), encoding="utf-8")
    own = measure(TaskGradients((1, 2), 1, str(tmp_path / "own.json"), "skill"))
    assert (measure.report.costs.trained, measure.report.costs.logged) == (0, 2), (
        "gradients of other validation rows alone are new"
    )
    assert own.validation_gradients[0][0].shape == (1, WIDTH) and own.validation_tasks.tolist() == ["assent"]
    assert own.row_directions[0][0].shape == (ROWS, WIDTH)


def test_members_and_logs_are_shared_with_the_gradient_log(train, measure, tmp_path):
    train("log", small_ensemble(m=1), cache=tmp_path / "one")
    measure()
    assert measure.report.costs.trained == 0 and measure.report.costs.logged == 4
    measure(TaskGradients((3,), 1, None, None))
    train("later", small_ensemble(m=1), pair=(2, 3), cache=tmp_path / "one")
    assert train.report.costs.trained == 0 and train.report.costs.logged == 0, "the norms came from the same pass"


def test_base_model_comes_back_without_adapters(measure):
    measure()
    assert not any("lora" in name for name, _ in measure.base_model.model.named_parameters())
    about = json.loads(json.dumps(measure.report.summary()))
    (of,) = about["gradients"]
    assert of["checkpoints"] == [1, 2] and sum(of["validation_rows"].values()) == len(measure.heldout)
    assert of["validation_loss"]["2"] < of["validation_loss"]["1"]
