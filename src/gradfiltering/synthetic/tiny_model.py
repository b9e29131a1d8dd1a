"""A small language model that is trained from scratch once, for experiments on a laptop and for tests."""

from dataclasses import asdict, dataclass
from typing import Any

from gradfiltering.distributed.process_group import single_process_trainer
from gradfiltering.models.language_model import LanguageModel, PretrainedModel
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.pretraining import Pretraining, hash_corpus, pretrain, read_corpus

PRETRAINING_VERSION = 1  # raise it when the same settings would train another model


@dataclass(frozen=True)
class TinyModel:
    """A small GPT-2 or LLaMA with its own BPE tokenizer, trained from scratch on given text and cached.

    Attributes:
        architecture: `gpt2` or `llama`.
        layers, heads, width, context: the model's shape; `context` in tokens.
        vocabulary: size of the BPE vocabulary.
        text: text files to train on, or None for the task generator's prose.
        characters: amount of the generator's prose to train on.
        pretraining: the training budget.
        precision, attention: see `PretrainedModel`.
    """

    architecture: str
    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int
    text: list[str] | None
    characters: int
    pretraining: Pretraining
    precision: str
    attention: str

    def check(self) -> None:
        """Read the text files, where any are named."""
        read_corpus(self.text, 0, 0)

    def load(self, cache: Cache, seed: int, trainer: Any) -> LanguageModel:
        """Load the model from the cache, where rank zero trains it first if it is not there."""
        documents = read_corpus(self.text, self.characters, seed)
        shape_options = ("architecture", "layers", "heads", "width", "context", "vocabulary")
        model_shape = {option: getattr(self, option) for option in shape_options}
        key = {
            "code": PRETRAINING_VERSION,
            "shape": model_shape,
            "corpus": hash_corpus(documents),
            "pretraining": asdict(self.pretraining),
            "precision": str(trainer().precision),
            "seed": seed,
        }
        cached = cache.get_or_compute_on_rank_zero(
            "base_models",
            key,
            pretrain,
            documents,
            model_shape,
            self.pretraining,
            seed,
            single_process_trainer(trainer),
        )
        model_folder = str(cached.path)
        pretrained = PretrainedModel(model_folder, None, self.precision, self.attention, trust_remote_code=False)
        loaded = pretrained.load(cache, seed, trainer)
        model_name = f"tiny {self.architecture} ({self.layers} layers, width {self.width})"
        return LanguageModel(loaded.model, loaded.tokenizer, model_name, model_folder, cached.seconds, cached.reused)
