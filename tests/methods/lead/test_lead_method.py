"""LEAD on a small target: losses and gradients are the training's own, a killed run resumes."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gradfiltering.data.batches import LengthBatches, make_batch_loader
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import Rows
from gradfiltering.methods.lead.curriculum import LeadSettings
from gradfiltering.methods.lead.lead_method import Lead
from gradfiltering.methods.lead.lead_schedule import RoundGradients
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import BaseModelLosses, Evidence, LossMeasurement
from gradfiltering.runs.cache import Cache
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.ifd import IFD
from gradfiltering.selectors.top import TopSelector
from tests.support.interruption import KilledHere
from tests.support.model_losses import response_losses
from tests.support.pipeline import quiet_trainer
from tests.support.small_targets import (
    load_small_target,
    make_small_dataset,
    make_training,
    tuning_settings,
)

LEAD = LeadSettings(IFD("perplexity", "plain", 96, None), True, 3, 0.1, 0.1, 0.3, 4)
TUNING = tuning_settings(schedule="linear", batch_size=4)
OFTEN_SAVED = replace(TUNING, checkpoint_minutes=1e-9)
RTOL = 1e-4
ROW_COUNT, BUDGET = 30, 14


@pytest.fixture(scope="module")
def dataset():
    return make_small_dataset(ROW_COUNT)


@pytest.fixture
def base_model(dataset, tmp_path):
    return load_small_target(dataset, tmp_path)


@pytest.fixture
def rows(dataset, base_model, tmp_path):
    return Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(dataset)


def measure_losses(base_model, examples):
    batches = make_batch_loader(LengthBatches(examples, 4096, base_model.pad_id), 0)
    losses = response_losses(base_model.model, ResponseNLL(), batches, torch.device("cpu"))
    return np.asarray([losses[example_id] for example_id in examples.example_ids.tolist()])


@pytest.fixture
def lead(base_model, rows, tmp_path):
    """Trains a candidate and reads its folder."""
    losses = LossMeasurement(measure_losses(base_model, rows.examples), None)
    ids = rows.examples.example_ids
    difficulty = np.random.default_rng(0).uniform(0.2, 1.2, ROW_COUNT)
    tasks = ["sums" if number % 3 else "words" for number in range(ROW_COUNT)]

    def run(name, tuning=TUNING, cache=None, trainer=quiet_trainer, heldout=True, model=base_model):
        evidence = Evidence(
            ids, 0, rows.examples.response_tokens, rows.examples.lengths, np.asarray(tasks),
            {BaseModelLosses(): losses},
        )  # fmt: skip
        used_rows, cache_folder = rows if heldout else Rows(rows.examples, None), cache or tmp_path / f"cache of {name}"
        training = make_training(model, used_rows, tmp_path / name, cache_folder, tuning, trainer=trainer)
        method, scores = Lead(LEAD, TopSelector(None, BUDGET)), Scores(ids, difficulty)
        assert method.select_rows(evidence, ROW_COUNT, scores) is None
        selection, candidate = method.train_candidate(None, evidence, ROW_COUNT, scores, training)
        return selection, candidate.result, Candidate(tmp_path / name / "target" / "candidate")

    return run


class Candidate:
    """Files of a trained candidate."""

    def __init__(self, folder):
        self.rounds = pq.read_table(folder / "rounds.parquet").to_pylist()
        self.pool = pq.read_table(folder / "pool.parquet").to_pandas()
        self.adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        with (folder / "curve.csv").open(newline="") as file:
            self.curve = [{**point, "seconds": None} for point in csv.DictReader(file)]


def watching(on_round_start=None, on_round_end=None):
    """A trainer that calls functions of the number of finished rounds, when a round is planned and recorded."""

    def build(**options):
        trainer = quiet_trainer(**options)
        fit = trainer.fit

        def begin(module, *data):
            curriculum = module.schedule.curriculum
            select_round, learn_round = curriculum.select_round, curriculum.learn_round

            def select_watched():
                if on_round_start:
                    on_round_start(len(curriculum.history))
                return select_round()

            def learn_watched(*arguments):
                if on_round_end:
                    on_round_end(len(curriculum.history))
                return learn_round(*arguments)

            curriculum.select_round, curriculum.learn_round = select_watched, learn_watched
            return fit(module, *data)

        trainer.fit = begin
        return trainer

    return build


def test_used_rows_are_the_selection_and_fill_the_budget(lead):
    selection, result, candidate = lead("run")
    pool, rounds, curve = candidate.pool, candidate.rounds, candidate.curve
    assert selection.example_ids == pool[pool.uses > 0].example_id.tolist()
    assert len(selection.example_ids) == BUDGET == result.examples
    assert pool.uses.max() <= LEAD.most_uses
    assert pool.uses.sum() == sum(len(entry["example_id"]) for entry in rounds) == selection.facts["trained_examples"]
    assert int(curve[-1]["examples_seen"]) == pool.uses.sum()
    assert result.steps == rounds[-1]["updates"] == int(curve[-1]["step"])
    assert float(curve[-1]["heldout_loss"]) < float(curve[0]["heldout_loss"])


def test_forward_passes_are_those_of_training_only(lead, base_model):
    trained_examples, probed_examples = [], []

    def count(_, arguments, options):
        counts = trained_examples if torch.is_grad_enabled() else probed_examples
        counts.append(len(options["input_ids"] if "input_ids" in options else arguments[0]))

    handle = base_model.model.model.register_forward_pre_hook(count, with_kwargs=True)
    selection, _, _ = lead("counted", heldout=False)
    handle.remove()
    assert sum(trained_examples) == selection.facts["trained_examples"]
    assert probed_examples == [1, 1], "a few tokens, to see whether the model can be split before its output layer"


def test_losses_are_those_of_the_model_before_the_update(lead, base_model, rows):
    """In the first round the adapter changes nothing yet, so the training's losses are the base model's."""
    _, _, candidate = lead("run")
    losses = dict(zip(rows.examples.example_ids.tolist(), measure_losses(base_model, rows.examples), strict=True))
    first_round, second_round = candidate.rounds[:2]
    assert first_round["updates"] == 1, "the first round is to be one update"
    np.testing.assert_allclose(first_round["loss"], [losses[id_] for id_ in first_round["example_id"]], rtol=RTOL)
    assert first_round["predicted_change"] == 0 and second_round["predicted_change"] < 0


def test_learning_rate_follows_the_budget(lead):
    _, _, candidate = lead("run", replace(TUNING, warmup_share=0.0, lr=0.01))
    distinct_before = np.array([0, *(entry["distinct"] for entry in candidate.rounds)])[:-1]
    rates = [entry["lr"] for entry in candidate.rounds]
    np.testing.assert_allclose(rates, 0.01 * (1 - distinct_before / BUDGET))


def test_round_gradient_is_the_mean_over_unclipped_updates(lead, monkeypatch):
    round_gradients = []
    monkeypatch.setattr(RoundGradients, "add_round", lambda self, cluster, mean: round_gradients.append(mean))
    # The adapter stands still, so rounds compare.
    still = {"weight_decay": 0.0, "lr": 1e-30, "warmup_share": 0.0}
    lead("whole", tuning_settings(batch_size=100, clip_norm=None, **still))
    whole_gradients, round_gradients[:] = round_gradients[:], []
    _, _, candidate = lead("cut", tuning_settings(batch_size=2, clip_norm=1e-3, **still))
    assert candidate.rounds[-1]["updates"] > len(candidate.rounds), "no round has several updates"
    assert len(whole_gradients) == len(round_gradients) and whole_gradients[0].norm() > 0.01
    for whole_gradient, cut_gradient in zip(whole_gradients, round_gradients, strict=True):
        # Updates weigh by tokens inside and by rows among each other, so only the direction is all but the same.
        assert torch.cosine_similarity(whole_gradient, cut_gradient, dim=0) > 0.9
        assert 0.5 < whole_gradient.norm() / cut_gradient.norm() < 2, "the clipped gradient was taken"


@pytest.mark.parametrize("killed_after", [1, 3])
def test_killed_run_resumes_with_the_same_rounds_and_adapter(lead, dataset, tmp_path, killed_after):
    _, _, whole = lead("whole")
    assert len(whole.rounds) > killed_after + 1

    def stop(finished_rounds):
        if finished_rounds == killed_after:
            raise KilledHere

    model, shared_cache, begun_rounds = load_small_target(dataset, tmp_path), tmp_path / "shared", []
    with pytest.raises(KilledHere):
        lead("killed", OFTEN_SAVED, cache=shared_cache, trainer=watching(on_round_end=stop), model=model)
    assert len(list((shared_cache / "interrupted").iterdir())) == 1
    _, _, resumed = lead("resumed", OFTEN_SAVED, cache=shared_cache, trainer=watching(begun_rounds.append))
    assert begun_rounds[0] == killed_after, "finished rounds were repeated"
    assert resumed.rounds == whole.rounds and resumed.curve == whole.curve
    assert resumed.adapter == whole.adapter
    assert resumed.pool.equals(whole.pool)
    assert not any((shared_cache / "interrupted").iterdir())
