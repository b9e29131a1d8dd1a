"""The frozen language model under the adapters, loaded by name or folder."""

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        name: what was loaded, in words.
        path: the folder or hub id `from_pretrained` loads it by.
        seconds: time spent training it, 0 for a model that was there.
        reused: whether a model this project trains was found ready.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    path: str
    seconds: float
    reused: bool

    @property
    def context(self) -> int:
        """Longest input the model takes, in tokens."""
        return context_length(self.model.config, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id to pad with; the end-of-sequence token where the tokenizer has no padding token."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)


class BaseModel(Protocol):
    """A part that can produce a model and its tokenizer."""

    @property
    def context(self) -> int:
        """Longest input the model takes, in tokens, told without loading the weights."""

    def check(self) -> None:
        """Refuses what `load` could not load, without loading the weights."""

    def load(self, cache: Cache, seed: int, trainer: Any) -> LanguageModel:
        """Loads or makes the model; `trainer` builds a Lightning trainer where training is needed."""


@dataclass(frozen=True)
class PretrainedModel:
    """Any causal language model by hub id or local folder.

    Attributes:
        model: hub id or folder.
        tokenizer: hub id or folder of the tokenizer, None for the model's own.
        precision: of the weights: `fp32`, `bf16`, `fp64`, or `auto` for bf16 where the device multiplies it natively
            and fp32 elsewhere.
        attention: attention implementation; a gradient engine takes the one that suits it.
        trust_remote_code: run code that comes with the model (off unless the user turns it on).
    """

    model: str
    tokenizer: str | None
    precision: str
    attention: str
    trust_remote_code: bool

    def __post_init__(self):
        if self.precision not in ("auto", *DTYPES):
            raise UserError(f"precision={self.precision} is unknown; choose one of: auto, {', '.join(DTYPES)}")

    @property
    def context(self) -> int:
        """Longest input the model takes, in tokens, as its configuration says."""
        config = from_pretrained(AutoConfig, self.model, trust_remote_code=self.trust_remote_code)
        return context_length(config, self._load_tokenizer())

    def check(self) -> None:
        """Reads configuration and tokenizer, which a missing or gated model refuses as it would its weights.

        Raises:
            UserError: the folder or hub id cannot be loaded, or tokenizer and model do not fit each other.
        """
        config = from_pretrained(AutoConfig, self.model, trust_remote_code=self.trust_remote_code)
        self._check_vocabulary(self._load_tokenizer(), config.get_text_config().vocab_size)

    def load(self, cache: Cache, seed: int, trainer: Any) -> LanguageModel:
        """Loads model and tokenizer with `from_pretrained`.

        Raises:
            UserError: the folder or hub id cannot be loaded, or tokenizer and model do not fit each other.
        """
        tokenizer = self._load_tokenizer()
        model = from_pretrained(
            AutoModelForCausalLM,
            self.model,
            dtype=DTYPES[resolve_precision(self.precision, trainer)],
            attn_implementation=self.attention,
            trust_remote_code=self.trust_remote_code,
        )
        self._check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
        return LanguageModel(model.eval().requires_grad_(False), tokenizer, self.model, self.model, 0.0, True)

    def _load_tokenizer(self) -> Any:
        return from_pretrained(AutoTokenizer, self.tokenizer or self.model, trust_remote_code=self.trust_remote_code)

    def _check_vocabulary(self, tokenizer: Any, rows: int) -> None:
        if len(tokenizer) > rows:
            raise UserError(
                f"the tokenizer of {self.tokenizer or self.model} has {len(tokenizer)} tokens, but {self.model} embeds "
                f"only {rows}; give the tokenizer the model was trained with"
            )


def resolve_precision(precision: str, trainer: Any) -> str:
    """What `auto` means on the trainer's device; anything else stays as it is."""
    return precision if precision != "auto" else fastest_precision(trainer().strategy.root_device)


def fastest_precision(device: torch.device) -> str:
    """bf16 where a device multiplies it natively, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def context_length(config: Any, tokenizer: Any) -> int:
    """Longest input a model takes, in tokens; `sys.maxsize` where nothing limits it, as in a state-space model.

    Args:
        config: the model's configuration. Its class maps most names onto one another, but not all.
        tokenizer: its own limit counts where the model names none; an absurdly large one is how it says "none".
    """
    text = config.get_text_config(decoder=True)
    named = [getattr(text, name, None) for name in CONTEXT_NAMES]
    limits = [limit for limit in (*named, tokenizer.model_max_length) if isinstance(limit, int) and limit > 0]
    return min(limits[0], sys.maxsize) if limits else sys.maxsize


def from_pretrained(factory: Any, name: str, **options: Any) -> Any:
    """`factory.from_pretrained`, with a remedy where the name cannot be loaded.

    Raises:
        UserError: no such folder or hub id, or this machine cannot reach it.
    """
    try:
        return factory.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load {name}: {str(error).splitlines()[0]}. Give a folder written by save_pretrained, or a hub id "
            "that this machine can reach (for a gated model ask for access on its page, then run `hf auth login`, "
            "formerly `huggingface-cli login`, or set HF_TOKEN)"
        ) from error
