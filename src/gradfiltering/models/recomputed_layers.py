"""Gradient checkpointing: layers whose activations are computed again in the backward pass, not stored."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gradfiltering.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel


@contextmanager
def recompute_layers(model: "PeftModel") -> Iterator[None]:
    """Store only the inputs of a model's layers during a forward pass (Chen et al., 2016, arXiv 1604.06174).

    Results are the same: no dropout is at work in a model in evaluation mode. transformers stores less in training mode
    only, so the layers themselves, and nothing inside them, are set to it. The recomputation is not reentrant, so
    adapters get gradients although the embeddings below them are frozen. The model is left as it was.

    Args:
        model: with adapters, in evaluation mode.

    Raises:
        UserError: the architecture's layers cannot be recomputed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    base_model: Any = model.get_base_model()
    layers = [module for module in base_model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not base_model.supports_gradient_checkpointing:
        raise UserError(
            f"the layers of {type(base_model).__name__} cannot be recomputed in the backward pass: transformers offers "
            "no gradient checkpointing for it; turn it off, and lower micro_batch_tokens where memory is short"
        )
    training_modes = [layer.training for layer in layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the newer name is not in every version of transformers 5
        base_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer, was_training in zip(layers, training_modes, strict=True):
            layer.training = was_training
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            base_model.gradient_checkpointing_disable()
