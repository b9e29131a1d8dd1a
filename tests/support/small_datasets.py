"""Small tokenizers, datasets and sources for tests."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
from gradfiltering.data.mixture import MixtureSource
from gradfiltering.data.schemas import Columns, Instruction
from gradfiltering.data.sources import FileSource, Heldout
from gradfiltering.synthetic.planted_defects import PlantedDefects

COLUMNS = Columns("instruction", "input", "output")
ALPACA = Instruction("alpaca", "instruction", "input", "output")
NOTHING = PlantedDefects(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Builds a small byte-level BPE tokenizer with `<s>` and `</s>`, whose merges span words' boundaries."""

    def make(extra: str = "") -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(["Say it.\nright", "Name one.\nwrong", extra] * 3, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def make_records():
    """Builds records from (instruction, input, output) triples or whole rows."""

    def make(rows, **fields) -> InstructionDataset:
        rows = [
            row if isinstance(row, dict) else dict(zip(("instruction", "input", "output"), row, strict=True))
            for row in rows
        ]
        whole = InstructionDataset(
            Dataset.from_list(rows), None, ALPACA, None, frozenset(), "plain", "test rows", JSON_LINES
        )
        return replace(whole, **fields)

    return make


@pytest.fixture
def numbered():
    """Builds rows that can be told apart."""

    def make(count: int) -> list[dict]:
        return [
            {"instruction": f"Say {n}.", "input": "" if n % 2 else "loudly", "output": f"The number {n}.", "n": n}
            for n in range(count)
        ]

    return make


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as a json array or, by the suffix, as json lines."""

    def write(rows, name: str = "rows.jsonl") -> str:
        path = Path(tmp_path / name)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n" if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def mixture_source():
    """Builds a `MixtureSource` with nothing held out and nothing planted unless asked for."""

    def make(sources, **changes) -> MixtureSource:
        usual = {
            "limit": None, "template": "plain", "schema": "auto", "columns": COLUMNS, "heldout": Heldout(None, 0, 0.0),
            "corrupt": NOTHING,
        }  # fmt: skip
        return MixtureSource(sources=sources, **{**usual, **changes})

    return make


@pytest.fixture
def file_source():
    """Builds a `FileSource` with nothing held out and nothing planted unless asked for."""

    def make(
        path: str, limit=None, heldout=(None, 0, 0.0), corrupt=NOTHING, columns=COLUMNS, schema="auto"
    ) -> FileSource:
        return FileSource(
            path=str(path), limit=limit, template="plain", schema=schema, columns=columns, heldout=Heldout(*heldout),
            corrupt=corrupt,
        )  # fmt: skip

    return make
