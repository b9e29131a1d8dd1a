"""Loading of the proxy and the target."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradfiltering.models.language_model import (
    ConvertibleSource,
    LanguageModel,
    LoadableSource,
    ModelSource,
    TrainableSource,
)
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.progress import progress_bar

if TYPE_CHECKING:
    import lightning as L


def load_language_model(
    source: ModelSource, cache: Cache, seed: int, trainer: "Callable[..., L.Trainer]"
) -> LanguageModel:
    """Load a model for the trainer's device; one that must be trained or converted first comes from the cache.

    Args:
        source: describes the model.
        cache: holds models that were trained from scratch or converted.
        seed: the run's.
        trainer: builds a `lightning.Trainer` from keyword arguments.
    """
    if isinstance(source, TrainableSource):
        return source.train(cache, seed, trainer)
    assert isinstance(source, LoadableSource), "a model source can be loaded or trained"
    device = trainer().strategy.root_device
    if isinstance(source, ConvertibleSource) and source.conversion_key is not None:
        with progress_bar("converting the model once, into the cache"):
            converted = cache.get_or_compute_on_rank_zero("base_models", source.conversion_key, source.convert)
        return source.load(device, converted.path)
    return source.load(device)
