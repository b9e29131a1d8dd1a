"""LEAD on a small target: no pass over the data, losses and gradients are the training's, a killed run goes on."""

import csv
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.finetuning.test_lora_finetuning import SHAPE, settings, workspace
from tests.reference import lead as reference
from tests.support.pipeline import quiet_trainer

from gradfiltering.data.batches import LengthBatches, make_batch_loader
from gradfiltering.data.dataset import Columns
from gradfiltering.data.examples import Encoder, Rows
from gradfiltering.data.sources import TaskSource
from gradfiltering.evidence.passes import response_losses
from gradfiltering.methods.curriculum import LeadSettings
from gradfiltering.methods.lead import RoundGradients, train
from gradfiltering.models.language_model import PretrainedModel
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.requests import BaseModelLosses, Evidence, LossMeasurement
from gradfiltering.runs.cache import Cache
from gradfiltering.scorers.base import Scores
from gradfiltering.scorers.ifd import IFD
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer

LEAD = LeadSettings(IFD("perplexity", "plain", 96, None), True, 3, 0.1, 0.1, 0.3, 4, 60)
RTOL, ATOL = 1e-4, 1e-6
ROWS, BUDGET = 30, 14


class KilledHere(Exception):
    pass


@pytest.fixture(scope="module")
def records():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    return TaskSource(ROWS, 5, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)


@pytest.fixture(scope="module")
def base(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([row["instruction"] + " " + row["output"] for row in records.rows], 300)
    new_model(SHAPE, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def load(base, tmp_path):
    how = PretrainedModel(str(base), None, "fp32", "sdpa", trust_remote_code=False)
    return lambda: how.load(Cache(tmp_path / "cache"), 0, quiet_trainer)


@pytest.fixture
def base_model(load):
    return load()


@pytest.fixture
def rows(records, base_model, tmp_path):
    return Encoder(base_model.tokenizer, 96, Cache(tmp_path / "cache")).encode_all(records)


def bare_losses(base_model, examples):
    batches = make_batch_loader(LengthBatches(examples, 4096, base_model.pad_id), 0)
    found = response_losses(base_model.model, ResponseNLL(), batches, torch.device("cpu"))
    return np.asarray([found[one] for one in examples.example_ids.tolist()])


@pytest.fixture
def lead(base_model, rows, tmp_path):
    """Trains a candidate and reads what it left."""
    bare = LossMeasurement(bare_losses(base_model, rows.examples), None)
    ids = rows.examples.example_ids
    difficulty = np.random.default_rng(0).uniform(0.2, 1.2, ROWS)
    tasks = ["sums" if number % 3 else "words" for number in range(ROWS)]

    def run(
        name,
        how=LEAD,
        tuning=None,
        budget=BUDGET,
        cache=None,
        trainer=quiet_trainer,
        heldout=True,
        seed=0,
        on=base_model,
    ):
        evidence = Evidence(
            ids,
            seed,
            rows.examples.response_tokens,
            rows.examples.lengths,
            np.asarray(tasks)[ids],
            {BaseModelLosses(): bare},
        )
        place = workspace(tmp_path / name, cache or tmp_path / f"store of {name}", seed, trainer)
        some = rows if heldout else Rows(rows.examples, None)
        tuning = tuning or settings(schedule="linear", batch_size=4)
        choice, made = train(how, budget, Scores(ids, difficulty), evidence, on, some, tuning, place)
        return choice, made["candidate"], Left(tmp_path / name / "target" / "candidate")

    return run


class Left:
    """What a candidate left in its folder."""

    def __init__(self, folder):
        self.rounds = pq.read_table(folder / "rounds.parquet").to_pylist()
        self.pool = pq.read_table(folder / "pool.parquet").to_pandas()
        self.adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
        with (folder / "curve.csv").open(newline="") as file:
            self.curve = [{**point, "seconds": None} for point in csv.DictReader(file)]


def stopped(rounds):
    """A trainer that is killed in the middle of a round, once so many are done."""

    def build(**options):
        trainer = quiet_trainer(**options)
        fit = trainer.fit

        def begin(module, *data):
            learn = module.curriculum.learn

            def counting(*arguments):
                if len(module.curriculum.history) == rounds:
                    raise KilledHere
                return learn(*arguments)

            module.curriculum.learn = counting
            return fit(module, *data)

        trainer.fit = begin
        return trainer

    return build


def test_the_rows_used_are_the_choice_and_fill_the_budget(lead, rows):
    choice, result, left = lead("run")
    used = left.pool[left.pool.uses > 0]
    assert choice.example_ids == used.example_id.tolist()
    assert len(choice.example_ids) == BUDGET == result.examples
    assert left.pool.uses.max() <= LEAD.most_uses
    assert (
        left.pool.uses.sum() == sum(len(one["example_id"]) for one in left.rounds) == choice.about["trained_examples"]
    )
    assert int(left.curve[-1]["examples_seen"]) == left.pool.uses.sum()
    assert result.steps == left.rounds[-1]["updates"] == int(left.curve[-1]["step"])
    assert float(left.curve[-1]["heldout_loss"]) < float(left.curve[0]["heldout_loss"])


def test_forward_passes_in_the_loop_are_the_examples_trained_on(lead, base_model):
    """Nothing is looked at to be scored: what the model sees is what it is trained on."""
    seen, training = [], []

    def count(_, arguments, options):
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        seen.append(len(ids))
        training.append(torch.is_grad_enabled())

    handle = base_model.model.register_forward_pre_hook(count, with_kwargs=True)
    choice, _, _ = lead("counted", heldout=False)
    handle.remove()
    assert sum(seen) == choice.about["trained_examples"] and all(training)


def test_losses_are_those_of_the_model_before_the_update(lead, base_model, rows):
    """In the first round the adapter is still nothing, so the training's losses are the bare model's."""
    _, _, left = lead("run")
    bare = dict(zip(rows.examples.example_ids.tolist(), bare_losses(base_model, rows.examples), strict=True))
    first = left.rounds[0]
    assert first["updates"] == 1, "the first round is to be one update"
    np.testing.assert_allclose(first["loss"], [bare[one] for one in first["example_id"]], rtol=RTOL)
    assert first["predicted_change"] == 0 and left.rounds[1]["predicted_change"] < 0


def test_the_learning_rate_follows_the_budget(lead):
    _, _, left = lead("run", tuning=settings(schedule="linear", warmup_share=0.0, lr=0.01, batch_size=4))
    before = [0, *(one["distinct"] for one in left.rounds)]
    np.testing.assert_allclose([one["lr"] for one in left.rounds], [0.01 * (1 - n / BUDGET) for n in before[:-1]])


def test_the_change_is_predicted_from_the_first_round_of_the_cluster_and_the_last_round():
    rng = np.random.default_rng(0)
    gradients, mean = RoundGradients(), torch.from_numpy(rng.normal(size=(4, 6))).float()
    assert gradients.change(0, 0.1) == 0
    for cluster, one in zip((0, 1, 0), mean, strict=False):
        gradients.add(cluster, one)
    last, first = mean[2].tolist(), mean[1].tolist()
    assert gradients.change(1, 0.1) == pytest.approx(reference.predicted_change(0.1, last, first), rel=RTOL)
    assert gradients.change(0, 0.1) == pytest.approx(
        reference.predicted_change(0.1, last, mean[0].tolist()), rel=RTOL
    ), "the first round of a cluster counts, not its latest"
    assert gradients.change(2, 0.1) == pytest.approx(reference.predicted_change(0.1, last, None), rel=RTOL)


def test_a_rounds_gradient_is_the_mean_over_its_updates_before_clipping(lead, monkeypatch):
    kept = []
    monkeypatch.setattr(RoundGradients, "add", lambda self, cluster, mean: kept.append(mean))
    tuning = {"weight_decay": 0.0, "lr": 1e-30, "warmup_share": 0.0}  # the adapter stands still, so rounds compare
    lead("whole", tuning=settings(batch_size=100, clip_norm=None, **tuning))
    whole, kept[:] = kept[:], []
    _, _, left = lead("cut", tuning=settings(batch_size=2, clip_norm=1e-3, **tuning))
    assert left.rounds[-1]["updates"] > len(left.rounds), "no round has several updates"
    assert len(whole) == len(kept) and whole[0].norm() > 0.01
    for one, other in zip(whole, kept, strict=True):
        # Updates weigh by tokens inside and by rows among each other, so only the direction is all but the same.
        assert torch.cosine_similarity(one, other, dim=0) > 0.9
        assert 0.5 < one.norm() / other.norm() < 2, "the clipped gradient was taken"


@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_run_goes_on_and_ends_with_the_same_choices_and_adapter(lead, load, tmp_path, killed_after):
    how = replace(LEAD, checkpoint_minutes=1e-9)
    _, _, whole = lead("whole")
    assert len(whole.rounds) > killed_after + 1
    with pytest.raises(KilledHere):
        lead("killed", how, cache=tmp_path / "shared", trainer=stopped(killed_after), on=load())
    assert len(list((tmp_path / "shared" / "interrupted").iterdir())) == 1
    begun = []
    _, _, resumed = lead("resumed", how, cache=tmp_path / "shared", trainer=noting(begun))
    assert begun[0] == killed_after, "rounds that had been made were made again"
    assert resumed.rounds == whole.rounds and resumed.curve == whole.curve
    assert resumed.adapter == whole.adapter
    assert resumed.pool.equals(whole.pool)
    assert not any((tmp_path / "shared" / "interrupted").iterdir())


def noting(begun):
    """A trainer that notes how many rounds were done whenever one begins."""

    def build(**options):
        trainer = quiet_trainer(**options)
        fit = trainer.fit

        def begin(module, *data):
            pick = module.curriculum.pick
            module.curriculum.pick = lambda: (begun.append(len(module.curriculum.history)), pick())[1]
            return fit(module, *data)

        trainer.fit = begin
        return trainer

    return build


def test_the_same_again_is_taken_from_the_store(lead, tmp_path):
    choice, first, left = lead("first", cache=tmp_path / "shared")
    again, second, taken = lead("again", cache=tmp_path / "shared", trainer=stopped(0))
    assert replace(second, reused=False) == first and second.reused and again == choice
    assert taken.rounds == left.rounds and taken.adapter == left.adapter


@pytest.mark.parametrize(
    ("change", "anew"), [({"sample_rate": 0.5}, True), ({"gamma": 0.2}, True), ({"checkpoint_minutes": 1.0}, False)]
)
def test_only_what_decides_the_choices_makes_it_train_again(lead, tmp_path, change, anew):
    lead("first", cache=tmp_path / "shared")
    _, result, _ = lead("second", replace(LEAD, **change), cache=tmp_path / "shared")
    assert result.reused is not anew


def test_another_seed_chooses_otherwise_and_micro_batches_change_nothing(lead):
    _, _, usual = lead("usual")
    _, _, cut = lead("cut", tuning=settings(schedule="linear", batch_size=4, micro_batch_tokens=40))
    _, _, other = lead("other", seed=1)
    assert [one["example_id"] for one in cut.rounds] == [one["example_id"] for one in usual.rounds]
    for one, two in zip(cut.rounds, usual.rounds, strict=True):
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=RTOL, atol=ATOL)
    assert [one["example_id"] for one in other.rounds] != [one["example_id"] for one in usual.rounds]


def test_a_budget_beyond_the_pool_uses_every_row(lead, rows):
    choice, _, _ = lead("all", replace(LEAD, sample_rate=1.0), budget=1000)
    assert choice.example_ids == rows.examples.example_ids.tolist()
