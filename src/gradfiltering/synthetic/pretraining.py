"""A small causal language model and its tokenizer, before the model is trained, and what it is trained on."""

import hashlib
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gradfiltering.data.templates import Turn, alpaca
from gradfiltering.errors import UserError
from gradfiltering.options import PositiveFloat, PositiveInt, options
from gradfiltering.seeding import derive_seed
from gradfiltering.synthetic.task_generator import prose

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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


@lru_cache(maxsize=2)  # of proxy and target: the jobs of a sweep need it to find their base models
def _generated(characters: int, seed: int) -> list[str]:
    return prose(characters, derive_seed(seed, "prose"))


def hash_corpus(documents: list[str]) -> str:
    """Digest of the documents in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\0")
    return digest.hexdigest()[:32]


def train_tokenizer(documents: list[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer; the words of the Alpaca prompt are among its training text."""
    from transformers import PreTrainedTokenizerFast

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


def new_model(shape: dict[str, Any], tokenizer: "PreTrainedTokenizerFast", seed: int) -> "PreTrainedModel":
    """A randomly initialised model of the given shape; its vocabulary is padded to a multiple of 64.

    Raises:
        UserError: unknown architecture.
    """
    from transformers import AutoModelForCausalLM

    special_ids: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = model_config(shape, len(tokenizer), special_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "backbone", shape["architecture"]))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def model_config(shape: dict[str, Any], token_count: int, special_ids: dict[str, Any]) -> Any:
    """The configuration of a model of the given shape.

    Raises:
        UserError: unknown architecture.
    """
    from transformers import GPT2Config, LlamaConfig

    vocabulary = math.ceil(token_count / 64) * 64
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
            **special_ids,
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
            **special_ids,
        )
    else:
        raise UserError(f"architecture={shape['architecture']} is unknown; choose gpt2 or llama")
    return config
