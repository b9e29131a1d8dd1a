"""Loading of the proxy and the target, and of what tokenises their rows."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.encoder import Encoder, describe_template, find_max_tokens
from gradfiltering.data.templates import layout_name
from gradfiltering.experiment.open_run import OpenRun
from gradfiltering.experiment.parts import Experiment, ModelParts
from gradfiltering.models.language_model import (
    ConvertibleSource,
    LanguageModel,
    LoadableSource,
    ModelSource,
    TrainableSource,
)
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.logs import announce
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


def build_encoder(
    parts: ModelParts, model: LanguageModel, experiment: Experiment, dataset: InstructionDataset
) -> Encoder:
    """Build the encoder that tokenises rows for a model, no longer than the model reads."""
    max_tokens, context_length = parts.max_tokens, model.context_length
    if max_tokens == "auto":
        whole_encoder = Encoder(model.tokenizer, context_length, experiment.cache, experiment.tokenising)
        max_tokens = find_max_tokens(whole_encoder, dataset)
        if max_tokens == context_length:
            announce(f"no row is cut that the model can read: {context_length:,} tokens")
        else:
            announce(f"rows are cut to {max_tokens:,} tokens, and 99% of them fit; the model reads {context_length:,}")
    elif max_tokens > context_length:
        announce(f"examples have up to {context_length:,} tokens, not {max_tokens:,}: the model reads no more")
    return Encoder(
        model.tokenizer, min(max_tokens, context_length), experiment.cache, experiment.tokenising, context_length
    )


def report_model(run: OpenRun, dataset: InstructionDataset, role: str, model: LanguageModel) -> None:
    """Note a model, and say by which prompt template it sees the rows: each has its own where that is `auto`.

    Args:
        run: the open run.
        dataset: the rows.
        role: proxy or target.
        model: the model with its tokenizer.
    """
    run.stages.add_to_summary(
        base_models={**run.stages.summary.get("base_models", {}), role: {"name": model.name, "path": model.path}}
    )
    layout = layout_name(dataset.template_for(model.tokenizer), model.tokenizer)
    run.stages.add_to_summary(templates={**run.stages.summary.get("templates", {}), role: layout})
    announce(f"prompt template of the {role}: {describe_template(dataset, model.tokenizer)}")
