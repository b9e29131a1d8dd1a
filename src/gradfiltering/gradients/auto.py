"""Choice of the gradient engine by what the model allows."""

import logging

from peft import PeftModel

from gradfiltering.gradients.engine import GradientEngine, UnsupportedModelError
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import Objective

logger = logging.getLogger(__name__)


def choose_engine(model: PeftModel, objective: Objective, chunk_tokens: int) -> GradientEngine:
    """Build the fused engine where it serves the model, else the vmap engine, and log which.

    The fused engine is ruled out by adapted layers that are not plainly linear or are used twice,
    by hidden states of another shape than [rows, tokens, width], and by attention arguments that it
    would ignore (such as capped scores).

    Args:
        model, objective, chunk_tokens: see `GradientEngine`.
    """
    try:
        fused_engine = FusedEngine(model, objective, chunk_tokens)
        fused_engine.check_model()
    except UnsupportedModelError as error:
        logger.info("per-example gradients by the vmap engine: %s", error)
        return VmapEngine(model, objective, chunk_tokens)
    logger.info("per-example gradients by the fused engine")
    return fused_engine
