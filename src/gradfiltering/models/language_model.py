"""Causal language models with their tokenizers, loaded by hub id or from a folder."""

import sys
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gradfiltering.errors import UserError
from gradfiltering.options import options

CONTEXT_NAMES = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: in words, for messages.
        path: the folder or hub id `from_pretrained` loads it by.
        seconds: time spent training it, 0 for a model that this project did not train.
        reused: False for a model that was trained just now.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: str
    seconds: float = 0.0
    reused: bool = True

    @property
    def context_length(self) -> int:
        """Longest input the model takes, in tokens."""
        return find_context_length(self.model.config, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id to pad with; the end of sequence where the tokenizer has no padding token."""
        pad_id, end_id = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end_id if pad_id is None else pad_id)


class ModelSource(Protocol):
    """A description of a model by which it can be loaded, or trained from scratch."""

    @property
    def context_length(self) -> int:
        """Longest input the model takes, in tokens, found without loading the weights."""

    def check(self) -> None:
        """Refuse what could not be loaded, without loading the weights."""


@runtime_checkable
class LoadableSource(ModelSource, Protocol):
    """A model that is there."""

    def load(self, device: torch.device) -> LanguageModel:
        """Load the model in a precision that suits the device; it is not moved there."""


@runtime_checkable
class TrainableSource(ModelSource, Protocol):
    """A model that is trained from scratch, once for each seed."""

    def train(self, cache: Any, seed: int, trainer: Any) -> LanguageModel:
        """Train the model unless the cache has it, and load it."""


@options
class PretrainedModel:
    """Any causal language model by hub id or local folder.

    Attributes:
        model: hub id or folder.
        tokenizer: hub id or folder of the tokenizer, None for the model's own.
        precision: of the weights; `auto` for bf16 where the device multiplies it natively and fp32
            elsewhere.
        attention: attention implementation; a gradient engine takes the one that suits it.
        trust_remote_code: run code that comes with the model (off unless the user turns it on).
    """

    model: str
    tokenizer: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    attention: str = "sdpa"
    trust_remote_code: bool = False

    @property
    def context_length(self) -> int:
        """Longest input the model takes, in tokens, as its configuration says."""
        return find_context_length(self._from_pretrained(AutoConfig), self._load_tokenizer())

    def check(self) -> None:
        """Read configuration and tokenizer; both are missing where the weights would be.

        Raises:
            UserError: the folder or hub id cannot be loaded, or tokenizer and model do not fit.
        """
        config = self._from_pretrained(AutoConfig)
        self._check_vocabulary(self._load_tokenizer(), config.get_text_config().vocab_size)

    def load(self, device: torch.device) -> LanguageModel:
        """Load model and tokenizer with `from_pretrained`.

        Raises:
            UserError: the folder or hub id cannot be loaded, or tokenizer and model do not fit.
        """
        tokenizer = self._load_tokenizer()
        precision = fastest_precision(device) if self.precision == "auto" else self.precision
        model = self._from_pretrained(AutoModelForCausalLM, dtype=DTYPES[precision], attn_implementation=self.attention)
        self._check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
        model.eval().requires_grad_(False)
        return LanguageModel(model, tokenizer, name=self.model, path=self.model)

    def _load_tokenizer(self) -> Any:
        tokenizer_name = self.tokenizer or self.model
        return from_pretrained(AutoTokenizer, tokenizer_name, trust_remote_code=self.trust_remote_code)

    def _from_pretrained(self, factory: Any, **arguments: Any) -> Any:
        return from_pretrained(factory, self.model, trust_remote_code=self.trust_remote_code, **arguments)

    def _check_vocabulary(self, tokenizer: Any, embedding_count: int) -> None:
        if len(tokenizer) > embedding_count:
            raise UserError(
                f"the tokenizer of {self.tokenizer or self.model} has {len(tokenizer)} tokens, but "
                f"{self.model} embeds only {embedding_count}; give the tokenizer the model was "
                "trained with"
            )


def fastest_precision(device: torch.device) -> str:
    """Return `bf16` where a device multiplies it natively, else `fp32`."""
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if is_native else "fp32"


def find_context_length(config: Any, tokenizer: Any) -> int:
    """Find the longest input a model takes, in tokens.

    Args:
        config: the model's configuration. Its class maps most names onto one another, but not all.
        tokenizer: its own limit counts where the model names none; an absurdly large one is how it
            says "none".

    Returns:
        `sys.maxsize` where nothing limits it, as in a state-space model.
    """
    text_config = config.get_text_config(decoder=True)
    named_limits = [getattr(text_config, name, None) for name in CONTEXT_NAMES]
    for limit in (*named_limits, tokenizer.model_max_length):
        if isinstance(limit, int) and limit > 0:
            return min(limit, sys.maxsize)
    return sys.maxsize


def from_pretrained(factory: Any, model_name: str, **arguments: Any) -> Any:
    """Call `factory.from_pretrained`, with a remedy where the name cannot be loaded.

    Raises:
        UserError: no such folder or hub id, or this machine cannot reach it.
    """
    try:
        return factory.from_pretrained(model_name, **arguments)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load {model_name}: {str(error).splitlines()[0]}. Give a folder written by "
            "save_pretrained, or a hub id that this machine can reach (for a gated model ask for "
            "access on its page, then run `hf auth login`, formerly `huggingface-cli login`, or set "
            "HF_TOKEN)"
        ) from error
