"""A target of one layer and a few rows to fine-tune it on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradfiltering.data.dataset import Columns, InstructionDataset
from gradfiltering.data.examples import Rows
from gradfiltering.finetuning.fine_tune import FineTuningContext
from gradfiltering.finetuning.settings import FineTuningSettings
from gradfiltering.models.language_model import LanguageModel, PretrainedModel
from gradfiltering.models.lora import LoraSettings
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.models.quantization import Quantization
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import new_model, train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource
from tests.support.pipeline import quiet_trainer

SHAPE = {"architecture": "llama", "layers": 1, "heads": 2, "width": 16, "context": 96, "vocabulary": 300}
ROW_COUNT = 21


def tuning_settings(**changes: Any) -> FineTuningSettings:
    """Settings under which the small target learns something in a second."""
    settings = FineTuningSettings(
        epochs=2, batch_size=6, micro_batch_tokens=4096, gradient_checkpointing=False, lr=0.01, schedule="cosine",
        warmup_share=0.1, weight_decay=0.0, clip_norm=1.0, records=5, checkpoint_minutes=10,
        lora=LoraSettings(rank=2, alpha=4, target_modules="all-linear", init_b_std=0.0),
    )  # fmt: skip
    return replace(settings, **changes)


def make_small_dataset(row_count: int) -> InstructionDataset:
    """Rows of the task generator, five of them held out, without planted defects."""
    columns = Columns("instruction", "input", "output")
    return TaskSource(row_count, 5, None, "plain", columns, PlantedDefects(0, 0, 0, 0, 0, 0)).load(seed=0)


def load_small_target(
    dataset: InstructionDataset, folder: Path, quantization: Quantization | None = None, **shape: Any
) -> LanguageModel:
    """An untrained model with a tokenizer of the dataset's own text."""
    save_small_target(dataset, folder, **shape)
    return load_saved_target(folder, quantization)


def save_small_target(dataset: InstructionDataset, folder: Path, **shape: Any) -> None:
    """Writes an untrained model and a tokenizer of the dataset's own text into `folder/base`."""
    tokenizer = train_tokenizer([row["instruction"] + " " + row["output"] for row in dataset.rows], 300)
    new_model(SHAPE | shape, tokenizer, 0).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def load_saved_target(folder: Path, quantization: Quantization | None = None) -> LanguageModel:
    """Loads what `save_small_target` wrote."""
    pretrained = PretrainedModel(str(folder / "base"), None, "fp32", "sdpa", False, quantization)
    return pretrained.load(torch.device("cpu"))


def make_training(
    base_model: LanguageModel,
    rows: Rows,
    run_folder: Path,
    cache_folder: Path,
    settings: FineTuningSettings | None = None,
    seed: int = 0,
    trainer: Any = quiet_trainer,
) -> FineTuningContext:
    """Everything that a small target is trained with."""
    return FineTuningContext(
        base_model=base_model,
        examples=rows.examples,
        heldout=rows.heldout,
        settings=settings or tuning_settings(),
        objective=ResponseNLL(),
        cache=Cache(cache_folder),
        run_folder=RunFolder(run_folder),
        seed=seed,
        build_trainer=trainer,
    )
