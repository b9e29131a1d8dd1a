"""Gradients at checkpoints: against explicit vectors, from the store, and no more of them than somebody needs."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from tests.reference import less as reference
from tests.reference.gradients import LoopEngine
from tests.support.pipeline import quiet_trainer
from tests.support.small_ensembles import ROWS, SHAPE, settings

from gradfiltering.data.examples import Encoder
from gradfiltering.data.validation_rows import validation_rows
from gradfiltering.ensembles.dropout_ensemble import DropoutEnsemble
from gradfiltering.ensembles.training_state import StackState
from gradfiltering.errors import UserError
from gradfiltering.evidence.gradient_log import BatchSettings
from gradfiltering.evidence.task_gradients import measure_influence
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.projection import Projection
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import Evidence, TaskGradients
from gradfiltering.runs.cache import Cache, Workspace
from gradfiltering.scorers.less import LESS
from gradfiltering.synthetic.pretraining import new_model

RTOL = 1e-5  # projections are kept in float32
WIDTH = 24
NEED = TaskGradients((1, 2), 1, None, "source")
HOW = settings(m=3)


@pytest.fixture
def measure(records, tokenizer, tmp_path):
    encoder = Encoder(tokenizer, SHAPE["context"], Cache(tmp_path / "cache"))
    examples = encoder.encode_all(records).examples

    def run(*needs, cache="one", engine=FusedEngine, tokens=4096, how=HOW):
        model = new_model(SHAPE, tokenizer, 0).double().eval().requires_grad_(False)
        model.set_attn_implementation("eager")
        base_model = LanguageModel(model, tokenizer, "test", "test", 0.0, True)
        workspace = Workspace(tmp_path / "run", Cache(tmp_path / cache), 0, quiet_trainer)
        wanted = {need: validation_rows(records, need.validation, need.task) for need in needs or (NEED,)}
        run.result = measure_influence(
            wanted, encoder, examples, base_model, how, partial(engine, objective=ResponseNLL()),
            BatchSettings(tokens, 0), workspace, Projection(WIDTH, 3),
        )  # fmt: skip
        run.base_model, run.examples = base_model, examples
        run.heldout = encoder.encode_heldout(records)
        return run.result.gradients[(needs or (NEED,))[0]]

    return run


def stored_state(cache, epoch, member=0):
    for record in sorted((cache / "members").glob("*/artifact.json")):
        key = json.loads(record.read_text("utf-8"))["key"]
        if (key["member"], key["epoch"]) == (member, epoch):
            return StackState.read(record.parent / "state.safetensors")
    raise AssertionError(f"no member {member} at epoch {epoch}")


def explicit_vectors(measure, state):
    """Projected directions of torch.optim.Adam for all rows, and projected gradients of the held-out rows."""
    model = HOW.lora.attach(measure.base_model.model)
    own = {name: value[0] for name, value in state.adapters.items()}
    moments = {kind: {name: value[0] for name, value in of.items()} for kind, of in state.moments.items()}
    dense = reference.matrix(Projection(WIDTH, 3), {name: value.shape for name, value in own.items()})
    rows = [
        reference.adam_direction(
            own, moments, state.steps, reference.row_gradient(model, own, row), HOW.betas, HOW.eps
        ) @ dense
        for row in measure.examples.table
    ]  # fmt: skip
    heldout = [reference.plain_gradient(model, own, row) @ dense for row in measure.heldout.table]
    model.unload()
    return rows, heldout


def test_gradients_and_score_equal_an_explicit_computation_with_torchs_adam(measure, records, tmp_path):
    found = measure()
    rows, heldout = [], []
    for place, epoch in enumerate(NEED.checkpoints):
        own, others = explicit_vectors(measure, stored_state(tmp_path / "one", epoch))
        np.testing.assert_allclose(found.row_directions[place][0], torch.stack(own), rtol=RTOL, atol=RTOL)
        np.testing.assert_allclose(found.validation_gradients[place][0], torch.stack(others), rtol=RTOL, atol=RTOL)
        rows.append(own)
        heldout.append(others)
    tasks = [records.heldout[int(place)]["source"] for place in measure.heldout.example_ids]
    assert found.validation_tasks.tolist() == tasks and len(set(tasks)) > 1
    ids = measure.examples.example_ids
    scores = LESS([1, 2], 1, None, "source", "max").score(
        Evidence(ids, 0, measure.examples.response_tokens, measure.examples.lengths, None, {NEED: found})
    )  # fmt: skip
    expected = np.asarray(reference.influences(rows, heldout, tasks, found.learning_rates))
    np.testing.assert_allclose(scores.score, expected.max(1), rtol=1e-4, atol=1e-6)
    for task, name in enumerate(sorted(set(tasks))):
        np.testing.assert_allclose(scores.columns[f"influence_{name}"], expected[:, task], rtol=1e-4, atol=1e-6)


def test_members_that_are_not_trained_ones_are_refused_before_training(measure, tmp_path):
    passes = DropoutEnsemble(**{**vars(HOW), "dropout": 0.1, "train_dropout": 0.0})
    with pytest.raises(UserError, match=r"scorer\.members=1.*ensemble=lora"):
        measure(how=passes)
    assert not (tmp_path / "one" / "members").exists()


def test_rates_are_those_of_the_epochs_own_steps(measure):
    """6 steps an epoch, the first 3 of them warming up."""
    np.testing.assert_allclose(measure().learning_rates, [0.01 * (1 / 3 + 2 / 3 + 4) / 6, 0.01], rtol=1e-12)


def assert_same(one, other, rtol=RTOL):
    for name in ("row_directions", "validation_gradients"):
        for ours, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=rtol, atol=RTOL, err_msg=name)


@pytest.mark.parametrize(("engine", "tokens"), [(FusedEngine, 100), (VmapEngine, 4096), (LoopEngine, 4096)])
def test_neither_batches_nor_the_engine_matter(measure, engine, tokens):
    need = TaskGradients((1,), 1, None, None)
    assert_same(measure(need), measure(need, cache="other", engine=engine, tokens=tokens))


def test_the_same_again_computes_nothing(measure, tmp_path):
    first = measure()
    assert (measure.result.trained, measure.result.logged) == (2, 4) and not measure.result.reused
    again = measure()
    assert measure.result.reused and measure.result.tokens == 0 and measure.result.reused_seconds > 0
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
    assert (measure.result.trained, measure.result.logged) == (1, 2), "epoch 3 alone is new"
    several = TaskGradients((1, 2), 2, None, "source")
    measure(several)
    assert (measure.result.trained, measure.result.logged) == (2, 4), "member 1 alone is new"
    rows = [{"instruction": "Say yes.", "input": "", "output": "Yes.", "skill": "assent"}]
    (tmp_path / "own.json").write_text(json.dumps(rows), encoding="utf-8")
    own = measure(TaskGradients((1, 2), 1, str(tmp_path / "own.json"), "skill"))
    assert (measure.result.trained, measure.result.logged) == (0, 2), "gradients of other validation rows alone are new"
    assert own.validation_gradients[0][0].shape == (1, WIDTH) and own.validation_tasks.tolist() == ["assent"]
    assert own.row_directions[0][0].shape == (ROWS, WIDTH)


def test_members_and_logs_serve_other_scores_and_the_other_way_round(train, measure, tmp_path):
    train("log", settings(m=1), cache=tmp_path / "one")
    measure()
    assert measure.result.trained == 0 and measure.result.logged == 4
    measure(TaskGradients((3,), 1, None, None))
    train("later", settings(m=1), pair=(2, 3), cache=tmp_path / "one")
    assert train.result.trained == 0 and train.result.logged == 0, "the norms came from the same pass"


def test_the_backbone_comes_back_without_adapters_and_the_summary_is_plain(measure):
    measure()
    assert not any("lora" in name for name, _ in measure.base_model.model.named_parameters())
    about = json.loads(json.dumps(measure.result.summary()))
    (of,) = about["gradients"]
    assert of["checkpoints"] == [1, 2] and sum(of["validation_rows"].values()) == len(measure.heldout)
    assert of["validation_loss"]["2"] < of["validation_loss"]["1"]
