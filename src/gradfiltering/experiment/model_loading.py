"""Loading of the proxy and the target."""

from collections.abc import Callable

import lightning as L

from gradfiltering.models.language_model import LanguageModel, LoadableSource, ModelSource, TrainableSource
from gradfiltering.runs.cache import Cache


def load_language_model(
    source: ModelSource, cache: Cache, seed: int, trainer: Callable[..., L.Trainer]
) -> LanguageModel:
    """Load a model for the trainer's device, or train a small one that must be trained first.

    Args:
        source: describes the model.
        cache: holds models that were trained from scratch.
        seed: the run's.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    if isinstance(source, TrainableSource):
        return source.train(cache, seed, trainer)
    assert isinstance(source, LoadableSource), "a model source can be loaded or trained"
    return source.load(trainer().strategy.root_device)
