from dataclasses import replace

import lightning as L
import pytest
from datasets import Dataset
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.schemas import Instruction
from gradfiltering.ensembles.batch_settings import BatchSettings
from gradfiltering.evidence.measurers import find_measurer
from gradfiltering.models.language_model import LanguageModel
from gradfiltering.runs.cache import Cache
from tests.support.pipeline import tiny_gpt2
from tests.support.small_ensembles import measurement_context

SCHEMA = Instruction("alpaca", "instruction", "input", "output")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> LanguageModel:
    """A small GPT-2 in a folder as a user has one."""
    folder = tiny_gpt2(tmp_path_factory.mktemp("gpt2"))
    model = GPT2LMHeadModel.from_pretrained(folder).eval().requires_grad_(False)
    return LanguageModel(model, GPT2TokenizerFast.from_pretrained(folder), "tiny", str(folder), 0.0, True)


@pytest.fixture
def rows():
    return [
        {"instruction": f"Say {n}.", "input": "" if n % 2 else "now", "output": "It is 1 2 3."[: 4 + n]}
        for n in range(9)
    ]


def one_cpu(**options) -> L.Trainer:
    return L.Trainer(accelerator="cpu", devices=1, **options)


@pytest.fixture
def make_context(tmp_path):
    """Builds a context that measures rows under a base model, in batches of so many tokens."""

    def make(base_model, rows, tokens=256, max_tokens=128, schema=SCHEMA, **changes):
        dataset = InstructionDataset(
            Dataset.from_list(rows), None, schema, None, frozenset(), "alpaca", "test", JSON_LINES
        )
        encoder = Encoder(base_model.tokenizer, max_tokens, Cache(tmp_path / "cache"))
        context = measurement_context(
            dataset, base_model, tmp_path / "run", tmp_path / "cache", one_cpu, encoder=encoder,
            batches=BatchSettings(tokens, 0),
        )  # fmt: skip
        return replace(context, **changes)

    return make


@pytest.fixture
def measure(make_context):
    """Measures one request of rows under a base model."""

    def measure_request(request, base_model, rows, **changes):
        return find_measurer(request).measure(request, make_context(base_model, rows, **changes))

    return measure_request
