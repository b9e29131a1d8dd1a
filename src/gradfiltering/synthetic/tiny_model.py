"""A small language model of this project's own, trained from scratch and cached."""

from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import nn

from gradfiltering.distributed.process_group import TrainerBuilder, single_process_trainer
from gradfiltering.models.language_model import LanguageModel, PretrainedModel, build_model_without_weights
from gradfiltering.options import PositiveInt, options
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.pretraining import Pretraining, hash_corpus, model_config, read_corpus

PRETRAINING_VERSION = 1  # raise it when the same settings would train another model


@options
class TinyModel:
    """A small GPT-2 or LLaMA with its own BPE tokenizer, trained from scratch on given text.

    Attributes:
        architecture, layers, heads, width, context: the model's shape; `context` in tokens.
        vocabulary: size of the BPE vocabulary.
        text: text files to train on, or None for the task generator's prose.
        characters: amount of the generator's prose to train on.
        pretraining: the training budget.
        precision, attention: see `PretrainedModel`.
    """

    architecture: Literal["gpt2", "llama"]
    layers: PositiveInt
    heads: PositiveInt
    width: PositiveInt
    context: PositiveInt
    vocabulary: PositiveInt
    text: list[str] | None
    characters: PositiveInt
    pretraining: Pretraining
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "fp32"
    attention: str = "auto"

    @property
    def context_length(self) -> int:
        """Longest input, in tokens."""
        return self.context

    @property
    def shape(self) -> dict[str, Any]:
        """The model's shape, as it is part of the key of the trained model."""
        return {
            "architecture": self.architecture,
            "layers": self.layers,
            "heads": self.heads,
            "width": self.width,
            "context": self.context,
            "vocabulary": self.vocabulary,
        }

    def build_empty(self, device: torch.device) -> nn.Module:
        """Build the model without weights; see `EmptySource`."""
        return build_model_without_weights(model_config(self.shape, self.vocabulary, {}))

    def check(self) -> None:
        """Read the text files, where any are named."""
        read_corpus(self.text, 0, 0)

    def train(self, cache: Cache, seed: int, trainer: TrainerBuilder) -> LanguageModel:
        """Train the model unless the cache has it, and load it.

        Args:
            cache: finished models of this run and others.
            seed: decides initial weights, the generated prose and the windows seen.
            trainer: builds a `lightning.Trainer` from keyword arguments.
        """
        from gradfiltering.synthetic.causal_training import pretrain

        documents = read_corpus(self.text, self.characters, seed)
        model_shape = self.shape
        cache_key = {
            "code": PRETRAINING_VERSION,
            "shape": model_shape,
            "corpus": hash_corpus(documents),
            "pretraining": asdict(self.pretraining),
            "precision": str(trainer().precision),
            "seed": seed,
        }

        cached = cache.get_or_compute_on_rank_zero(
            "base_models",
            cache_key,
            pretrain,
            documents,
            model_shape,
            self.pretraining,
            seed,
            single_process_trainer(trainer),
        )
        source = PretrainedModel(str(cached.path), precision=self.precision, attention=self.attention)
        language_model = source.load(trainer().strategy.root_device)
        name = f"tiny {self.architecture} ({self.layers} layers, width {self.width})"
        return replace(language_model, name=name, seconds=cached.seconds, reused=cached.reused, public_name=None)
