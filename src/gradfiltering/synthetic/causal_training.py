"""Training a small causal language model from scratch, within a budget of steps."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradfiltering.distributed.process_group import TrainerBuilder
from gradfiltering.errors import UserError
from gradfiltering.runs.progress import progress_bar
from gradfiltering.runs.run_displays import ProgressBar
from gradfiltering.seeding import numpy_rng
from gradfiltering.synthetic.pretraining import Pretraining, new_model, train_tokenizer


class Blocks(Dataset[Tensor]):
    """Random windows of `block` tokens of one token stream: item k is always the same window."""

    def __init__(self, stream: np.ndarray, block: int, count: int, seed: int):
        self.stream = stream
        self.block = block
        self.starts = numpy_rng(seed, "pretraining windows").integers(0, max(1, len(stream) - block), size=count)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        start = self.starts[index]
        return torch.from_numpy(self.stream[start : start + self.block].astype(np.int64))


class CausalPretraining(L.LightningModule):
    """Next-token training of all weights of a small model."""

    def __init__(self, model: torch.nn.Module, settings: Pretraining, bar: ProgressBar):
        super().__init__()
        self.bar = bar
        self.model = model
        self.settings = settings

    def training_step(self, input_ids: Tensor, index: int) -> Tensor:
        """Mean next-token loss of a [B, T] batch, in nats."""
        loss: Tensor = self.model(input_ids=input_ids, labels=input_ids).loss
        self.log("pretrain/loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Show the step."""
        self.bar.advance()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine decay, stepped every update."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.settings.lr, betas=(0.9, 0.95), weight_decay=0.01)
        warmup = max(1, self.settings.steps // 10)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            share = (step - warmup) / max(1, self.settings.steps - warmup)
            return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, share)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def pretrain(
    folder: Path, documents: list[str], shape: dict[str, Any], settings: Pretraining, seed: int, trainer: TrainerBuilder
) -> None:
    """Train tokenizer and model and write both to `folder` in the `save_pretrained` layout.

    Args:
        folder: existing folder to fill.
        documents: training text.
        shape: architecture, layers, heads, width, context, vocabulary.
        settings: budget.
        seed: decides initial weights and the windows seen.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    if settings.block > shape["context"]:
        raise UserError(
            f"a training sequence of {settings.block} tokens is longer than the model's context of {shape['context']}; "
            "shorten it",
            owner=settings,
            arguments=("block",),
        )
    tokenizer = train_tokenizer(documents, shape["vocabulary"])
    model = new_model(shape, tokenizer, seed)
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    stream = np.concatenate([np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded])
    windows = Blocks(stream, settings.block, settings.steps * settings.batch_size, seed)
    with progress_bar("training the tiny model, once", settings.steps, "steps") as bar:
        trainer(max_steps=settings.steps, gradient_clip_val=1.0, log_every_n_steps=20).fit(
            CausalPretraining(model, settings, bar), DataLoader(windows, batch_size=settings.batch_size)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
