"""Training a small causal language model and its tokenizer from scratch, within a budget of steps."""

import hashlib
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from gradfiltering.data.templates import Turn, alpaca
from gradfiltering.errors import UserError
from gradfiltering.options import PositiveFloat, PositiveInt, options
from gradfiltering.runs.progress import ProgressBar, progress_bar
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.synthetic.task_generator import prose

END = "<|endoftext|>"
GUTENBERG = re.compile(r"\*\*\* ?START OF.*?\*\*\*(.*?)\*\*\* ?END OF", re.DOTALL)


@options
class Pretraining:
    """Budget and settings of the from-scratch training.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences of `block` tokens in a step.
        block: tokens of a training sequence.
        lr: peak learning rate of AdamW, after a linear warm-up over the first tenth, falling along a cosine to a tenth.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    block: PositiveInt
    lr: PositiveFloat


def read_corpus(text: list[str] | None, characters: int, seed: int) -> list[str]:
    """Documents to train on: the given text files, or the task generator's prose.

    Project Gutenberg's licence header and footer are dropped, since they are not prose.

    Raises:
        UserError: a file is missing or not UTF-8.
    """
    if text is None:
        return _generated(characters, seed)
    documents: list[str] = []
    for name in text:
        path = Path(name).expanduser()
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {name} as UTF-8 text: {error}; give text files to pretrain on") from error
        body = GUTENBERG.search(content)
        documents.extend(part.strip() for part in re.split(r"\n{3,}", body[1] if body else content) if part.strip())
    if not documents:
        raise UserError(f"no text to pretrain on in {', '.join(text)}")
    return documents


@lru_cache(maxsize=2)  # of proxy and target: the jobs of a sweep need it to find their backbones
def _generated(characters: int, seed: int) -> list[str]:
    return prose(characters, derive_seed(seed, "prose"))


def hash_corpus(documents: list[str]) -> str:
    """Digest of the documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()[:32]


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; the words of the Alpaca prompt are among its training text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    layout = [alpaca(Turn("", "", ""), None), alpaca(Turn("", " ", ""), None)] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents + layout, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, bos_token=END)


def new_model(shape: dict[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> torch.nn.Module:
    """A randomly initialised model of the given shape; its vocabulary is padded to a multiple of 64.

    Raises:
        UserError: unknown architecture.
    """
    vocabulary = math.ceil(len(tokenizer) / 64) * 64
    if shape["architecture"] == "gpt2":
        config: Any = GPT2Config(
            vocab_size=vocabulary,
            n_positions=shape["context"],
            n_embd=shape["width"],
            n_layer=shape["layers"],
            n_head=shape["heads"],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    elif shape["architecture"] == "llama":
        config = LlamaConfig(
            vocab_size=vocabulary,
            max_position_embeddings=shape["context"],
            hidden_size=shape["width"],
            intermediate_size=shape["width"] * 8 // 3,
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    else:
        raise UserError(f"architecture={shape['architecture']} is unknown; choose gpt2 or llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "backbone", shape["architecture"]))
        return AutoModelForCausalLM.from_config(config)


class Blocks(Dataset):
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
        loss = self.model(input_ids=input_ids, labels=input_ids).loss
        self.log("pretrain/loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Show the step."""
        self.bar.advance()

    def configure_optimizers(self) -> Any:
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
    folder: Path, documents: list[str], shape: dict[str, Any], settings: Pretraining, seed: int, trainer: Any
) -> None:
    """Trains tokenizer and model and writes both to `folder` in the `save_pretrained` layout.

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
    with progress_bar("training the tiny model from scratch, once", settings.steps, "steps") as bar:
        trainer(max_steps=settings.steps, gradient_clip_val=1.0, log_every_n_steps=20).fit(
            CausalPretraining(model, settings, bar), DataLoader(windows, batch_size=settings.batch_size)
        )
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
