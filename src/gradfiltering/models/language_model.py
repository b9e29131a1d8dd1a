"""Causal language models with their tokenizers, loaded by hub id or from a folder."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import nn

from gradfiltering.data.examples import Examples
from gradfiltering.errors import UserError, attributed_to, is_disk_full, is_out_of_memory
from gradfiltering.models.model_folder import (
    check_folder_files,
    check_loaded_weights,
    check_model_folder,
    check_quantization,
    check_tokenizer,
    describe_loading_error,
)
from gradfiltering.models.quantization import (
    Quantization,
    check_quantization_package,
    keep_weight_layout,
    quantized_loading_arguments,
)
from gradfiltering.options import model_validator, options

if TYPE_CHECKING:
    import lightning as L
    from transformers import PreTrainedTokenizerBase

PROBE_TOKENS = 8
CAUSAL_TOLERANCE = 1e-4  # of the spread of the logits; encoders with random weights differ by 1e-3
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
        public_name: hub id, or the folder that the user named, for whoever loads an adapter of it; None for a model
            that this project trained.
    """

    model: nn.Module
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    path: str
    seconds: float = 0.0
    reused: bool = True
    public_name: str | None = None

    @property
    def context_length(self) -> int:
        """Longest input the model takes, in tokens."""
        return find_context_length(self.model.config, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Token id to pad with; the end of sequence where the tokenizer has no padding token that is embedded."""
        pad_id, end_id = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end_id if pad_id is None or pad_id >= self.embedding_count else pad_id)

    @property
    def embedding_count(self) -> int:
        """Number of tokens that the model embeds; a tokenizer may have more, which no row may use."""
        return embedding_count(self.model)

    def check_examples(self, examples: Examples) -> None:
        """Refuse rows with a token that the model has no embedding of.

        Raises:
            UserError: names the token and a row.
        """
        if len(self.tokenizer) <= self.embedding_count:
            return
        example_ids = np.tile(examples.example_ids, examples.sequence_count)
        for example_id, input_ids in zip(example_ids, examples.sequences().table["input_ids"], strict=True):
            if max(input_ids, default=0) >= self.embedding_count:
                token = self.tokenizer.convert_ids_to_tokens(max(input_ids))
                raise UserError(
                    f"row {example_id} holds the token {token!r} ({max(input_ids)}), but {self.name} embeds only "
                    f"{self.embedding_count}; give the tokenizer the model was trained with, or take the token out of "
                    "the rows or of the template"
                )


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
class ConvertibleSource(LoadableSource, Protocol):
    """A model in a file of another form, which is converted once."""

    @property
    def conversion_key(self) -> Mapping[str, Any] | None:
        """Everything that the converted model depends on; None where it loads as it is."""

    def convert(self, folder: Path) -> None:
        """Convert the model into `folder`, which exists and is empty."""

    def load(self, device: torch.device, converted_folder: Path | None = None) -> LanguageModel:
        """Load the model from its converted folder, or as it is."""


@runtime_checkable
class TrainableSource(ModelSource, Protocol):
    """A model that is trained from scratch, once for each seed."""

    def train(self, cache: Any, seed: int, trainer: "Callable[..., L.Trainer]") -> LanguageModel:
        """Train the model unless the cache, a `runs.cache.Cache`, has it, and load it."""


@runtime_checkable
class EmptySource(ModelSource, Protocol):
    """A model whose shapes are known before it is loaded."""

    def build_empty(self, device: torch.device) -> nn.Module:
        """Build the model on the meta device, without weights, in the type that it would have on `device`."""


@options
class PretrainedModel:
    """Any causal language model by hub id or local folder.

    Attributes:
        model: hub id or folder.
        tokenizer: hub id or folder of the tokenizer, None for the model's own.
        precision: of the weights; `auto` for bf16 where the device multiplies it natively and fp32
            elsewhere.
        attention: attention implementation, `auto` for the model's default. With `eager` a gradient engine
            computes eager attention as well; else it takes the implementation that suits it.
        trust_remote_code: run code that comes with the model (off unless the user turns it on).
        quantization: `4bit` or `8bit` quantises the linear layers as they are loaded, for adapters that are trained on
            them (see `quantized_loading_arguments`); None leaves them as they are.
    """

    model: str
    tokenizer: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    attention: str = "auto"
    trust_remote_code: bool = False
    quantization: Quantization | None = None

    @model_validator(mode="after")
    def _refuse_quantized_float64(self) -> Self:
        if self.quantization and self.precision == "fp64":
            raise ValueError(f"quantization {self.quantization} computes in bf16 or fp32, not in fp64; choose another")
        return self

    @property
    def context_length(self) -> int:
        """Longest input the model takes, in tokens, as its configuration says."""
        from transformers import AutoConfig

        return find_context_length(self._from_pretrained(AutoConfig), self._load_tokenizer())

    def check(self) -> None:
        """Read configuration and tokenizer and, of a folder, the names and shapes of the weights.

        Raises:
            UserError: the folder or hub id cannot be loaded, weights are missing or not used, tokenizer and model do
                not fit, or a package is missing.
        """
        if self.quantization:
            with attributed_to(self, "quantization"):
                check_quantization_package()
        config = self._load_config()
        tokenizer = self._load_tokenizer()
        embedded_tokens = config.get_text_config().vocab_size
        if Path(self.model).is_dir():
            with _without_progress_bar():
                embedded_tokens = embedding_count(self._load_weights(device_map="meta"))  # reads no numbers
        self._check_end_token(tokenizer, embedded_tokens)

    def load(self, device: torch.device) -> LanguageModel:
        """Load model and tokenizer with `from_pretrained`; a quantised model is put on the device.

        Raises:
            UserError: see `check`.
        """
        self._load_config()
        tokenizer = self._load_tokenizer()
        precision = fastest_precision(device) if self.precision == "auto" else self.precision
        arguments: dict[str, Any] = {"dtype": DTYPES[precision], "attn_implementation": self._attention_name}
        if precision == "fp64":
            arguments["experts_implementation"] = "eager"  # grouped products know no float64
        if self.quantization:
            with attributed_to(self, "quantization"):
                arguments |= quantized_loading_arguments(self.quantization, DTYPES[precision], device)
        model = self._load_weights(**arguments)
        keep_weight_layout(model)
        self._check_end_token(tokenizer, embedding_count(model))
        model.eval().requires_grad_(False)
        check_is_causal(model, self.model)
        return LanguageModel(model, tokenizer, name=self.model, path=self.model, public_name=self.model)

    def build_empty(self, device: torch.device) -> nn.Module:
        """Build the model without weights; see `EmptySource`."""
        precision = fastest_precision(device) if self.precision == "auto" else self.precision
        return build_model_without_weights(
            self._load_config(), trust_remote_code=self.trust_remote_code, dtype=DTYPES[precision]
        )

    @property
    def _attention_name(self) -> str | None:
        return None if self.attention == "auto" else self.attention

    def _load_config(self) -> Any:
        from transformers import AutoConfig

        check_model_folder(Path(self.model))
        config = self._from_pretrained(AutoConfig)
        check_quantization(config, self.model)
        return config

    def _load_weights(self, **arguments: Any) -> Any:
        from transformers import AutoModelForCausalLM

        with _without_reports():
            model, loading_info = self._from_pretrained(
                AutoModelForCausalLM, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
            )
        check_loaded_weights(loading_info, self.model, type(model).__name__)
        return model

    def _load_tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer_name = self.tokenizer or self.model
        check_folder_files(Path(tokenizer_name))
        tokenizer = from_pretrained(AutoTokenizer, tokenizer_name, trust_remote_code=self.trust_remote_code)
        check_tokenizer(tokenizer, tokenizer_name)
        return tokenizer

    def _from_pretrained(self, factory: Any, **arguments: Any) -> Any:
        return from_pretrained(factory, self.model, trust_remote_code=self.trust_remote_code, **arguments)

    def _check_end_token(self, tokenizer: Any, embedded_tokens: int) -> None:
        """Refuse a tokenizer that ends rows by a token the model has no embedding of."""
        end_id = tokenizer.eos_token_id
        if end_id is not None and end_id >= embedded_tokens:
            raise UserError(
                f"the tokenizer of {self.tokenizer or self.model} ends a text with token {end_id}, but {self.model} "
                f"embeds only {embedded_tokens}; give the tokenizer the model was trained with"
            )


def build_model_without_weights(config: Any, **arguments: Any) -> nn.Module:
    """Build the causal language model of a configuration on the meta device, with arguments of `from_config`."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, **arguments)
    return model


def embedding_count(model: Any) -> int:
    """Number of tokens that a model embeds."""
    return len(model.get_input_embeddings().weight)


def check_is_causal(model: Any, model_name: str) -> None:
    """Refuse an encoder that transformers loads as a language model: it sees the tokens that it is to predict.

    Its configuration alone does not tell: GPT-NeoX says `is_decoder: false`, too, and is causal. So where it may be
    an encoder, two texts that differ in their last token are compared in the predictions of the tokens before.

    Raises:
        UserError: these predictions differ.
    """
    config = model.config
    may_be_encoder = getattr(config, "is_decoder", None) is False or getattr(config, "causal", None) is False
    if config.model_type == "xlnet" or (may_be_encoder and _sees_later_tokens(model)):
        raise UserError(
            f"{model_name} is an encoder ({type(model).__name__}): its predictions depend on the tokens that follow, "
            "so that losses and gradients mean nothing; give a causal language model, or, for one that was trained as "
            'a decoder, set "is_decoder": true in its config.json'
        )


@torch.no_grad()
def _sees_later_tokens(model: Any) -> bool:
    token_ids = torch.arange(PROBE_TOKENS, device=model.device).remainder(embedding_count(model)).repeat(2, 1)
    token_ids[1, -1] = embedding_count(model) - 1
    logits = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits.double()
    earlier_logits = logits[:, :-1]  # [2, T - 1, V]
    largest_difference = (earlier_logits[0] - earlier_logits[1]).abs().max()
    return bool(largest_difference > CAUSAL_TOLERANCE * earlier_logits.std())


def fastest_precision(device: torch.device) -> str:
    """Return `bf16` where a device multiplies it natively, else `fp32`."""
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if is_native else "fp32"


def is_emulated(precision: str, device: torch.device) -> bool:
    """Return True for bf16 on a device that computes it by other types, some fifty times slower than fp32."""
    return precision == "bf16" and fastest_precision(device) != "bf16"


def find_context_length(config: Any, tokenizer: Any) -> int:
    """Find the longest input a model takes, in tokens.

    Args:
        config: the model's configuration. Its class maps most names onto one another, but not all.
        tokenizer: its own limit counts where the model names none; an absurdly large one is how it
            says "none".

    Returns:
        `sys.maxsize` where nothing limits it, as in a state-space model.
    """
    return context_limit(config, tokenizer.model_max_length)


def context_limit(config: Any, further_limit: int = sys.maxsize) -> int:
    """Return the longest input that a model's configuration names, in tokens; `further_limit` where it names none."""
    text_config = config.get_text_config(decoder=True)
    named_limits = [getattr(text_config, name, None) for name in CONTEXT_NAMES]
    for limit in (*named_limits, further_limit):
        if isinstance(limit, int) and limit > 0:
            return min(limit, sys.maxsize)
    return sys.maxsize


def from_pretrained(factory: Any, model_name: str, **arguments: Any) -> Any:
    """Call `factory.from_pretrained`, with a remedy where the name cannot be loaded.

    Raises:
        UserError: no such folder or hub id, this machine cannot reach it, or its files cannot be read.
    """
    try:
        return factory.from_pretrained(model_name, **arguments)
    except Exception as error:  # libraries raise of everything here
        if isinstance(error, UserError) or is_out_of_memory(error) or is_disk_full(error):
            raise
        reason = describe_loading_error(error, model_name)
        first_line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            reason
            or f"cannot load {model_name}: {first_line}. Give a folder written by "
            "save_pretrained, or a hub id that this machine can reach (for a gated model ask for "
            "access on its page, then run `hf auth login`, formerly `huggingface-cli login`, or set "
            "HF_TOKEN)"
        ) from error


@contextmanager
def _without_reports() -> Iterator[None]:
    """Silence transformers' table of missing and unexpected weights, which an error of ours names."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hide the bar of loading weights, where none are."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
