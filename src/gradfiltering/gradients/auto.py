"""Choice of the gradient engine by what the model allows."""

import logging
from typing import TYPE_CHECKING, Any

from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.gradients.unsupported import UnsupportedModelError
from gradfiltering.gradients.vmap import VmapEngine
from gradfiltering.models.objectives import Objective

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)


def choose_engine(model: "PeftModel", objective: Objective, chunk_tokens: int) -> GradientEngine:
    """Build the fused engine where it serves the model, else the vmap engine, and log which and why.

    Each engine is tried on two short rows. The fused engine is ruled out by adapted layers that are
    not plainly linear, are used twice, or see only some of the tokens; the vmap engine by operations
    that `torch.func` cannot batch, such as the routing of experts.

    Args:
        model, objective, chunk_tokens: see `GradientEngine`.

    Raises:
        UserError: no engine serves the model; says why.
    """
    base_model: Any = model.get_base_model()  # PEFT declares no more than nn.Module
    attention = base_model.config._attn_implementation
    refusals = []
    for engine_class in (FusedEngine, VmapEngine):
        try:
            engine = engine_class(model, objective, chunk_tokens)
            engine.to(model.device)
        except UnsupportedModelError as error:
            logger.info("the %s engine does not serve the model: %s", engine_class.name, error.reason)
            refusals.append(f"{engine_class.name}: {error.reason}")
            base_model.set_attn_implementation(attention)
        else:
            logger.info("per-example gradients by the %s engine", engine.name)
            return engine
    raise UserError(
        f"no gradient engine serves {type(base_model).__name__} ({'; '.join(refusals)}). Adapt only "
        "linear layers that every token goes through once, such as those of the attention, or choose another model"
    )
