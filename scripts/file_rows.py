"""Rows of a file and their tokenizer, as the data stage reads them; imports no more than that stage does."""

from pathlib import Path
from typing import Any

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.schemas import Columns
from gradfiltering.data.sources import FileSource, Heldout
from gradfiltering.synthetic.planted_defects import PlantedDefects


def load_tokenizer(folder: Path | str) -> Any:
    """Load a tokenizer, also from a folder that has GPT-2's `vocab.json` and `merges.txt` alone."""
    from transformers import AutoTokenizer, GPT2Tokenizer

    if not (Path(folder) / "tokenizer.json").is_file() and (Path(folder) / "vocab.json").is_file():
        return GPT2Tokenizer.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def read_rows(file: Path | str, limit: int | None) -> InstructionDataset:
    """Read a file as the data stage does: Alpaca's template, no rows held out, none spoilt."""
    source = FileSource(
        path=str(file), limit=limit, template="alpaca", schema="auto",
        columns=Columns("instruction", "input", "output"), heldout=Heldout(None, 0, 0.0), corrupt=PlantedDefects(),
    )  # fmt: skip
    return source.load(0)
