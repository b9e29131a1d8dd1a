"""A small model and its rows to plan for, and a machine of a steady speed."""

import pytest

from gradfiltering.data.dataset import Columns
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.planning import adapter_plan
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.support.pipeline import quiet_trainer
from tests.support.plans import RATES, steady_machine
from tests.support.small_ensembles import SHAPE, measurement_context, small_ensemble

ROWS = 120


@pytest.fixture(scope="module")
def rows():
    none = PlantedDefects(0, 0, 0, 0, 0, 0)
    return TaskSource(ROWS, 9, None, "plain", Columns("instruction", "input", "output"), none).load(seed=0)


@pytest.fixture(scope="module")
def base_model(rows):
    texts = [row["instruction"] + " " + row["output"] for row in rows.rows]
    tokenizer = train_tokenizer(texts, SHAPE["vocabulary"])
    model = new_model({**SHAPE, "layers": 2, "width": 32}, tokenizer, 0).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, "test", "test", 0.0, True)


@pytest.fixture
def context(rows, base_model, tmp_path):
    batches = BatchSettings(tokens=adapter_plan.NOMINAL_TOKENS)
    return measurement_context(
        rows,
        base_model,
        tmp_path / "run",
        tmp_path / "cache",
        quiet_trainer,
        batches=batches,
        ensemble=small_ensemble(),
    )


@pytest.fixture
def steady_speed(monkeypatch):
    """A machine with a speed of its own for each kind of work, that needs no time for an update."""
    steady_machine(monkeypatch, RATES)
