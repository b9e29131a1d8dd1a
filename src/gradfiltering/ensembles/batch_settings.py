"""Division of work into batches; no result depends on it."""

from typing import Literal

import torch

from gradfiltering.distributed.process_group import gather_from_ranks
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.lora import Adapters
from gradfiltering.options import NonNegativeInt, PositiveInt, options

FORWARD_TOKENS = 4096  # padded tokens of one batch in a forward pass, where the number is left open

_fitting_tokens: dict[tuple[str, ...], int] = {}  # numbers of tokens that this process has tried out


@options
class BatchSettings:
    """Sizes of batches.

    Attributes:
        tokens: padded tokens computed at once, over members and examples; `auto` for as many as pay and fit.
        workers: processes that prepare batches.
    """

    tokens: PositiveInt | Literal["auto"] = "auto"
    workers: NonNegativeInt = 0

    @property
    def forward_tokens(self) -> int:
        """Padded tokens of one batch in a forward pass."""
        return FORWARD_TOKENS if self.tokens == "auto" else self.tokens

    def settle_tokens(
        self, engine: GradientEngine, adapters: Adapters, row_width: int, device: torch.device, model_hash: str
    ) -> int:
        """Return the padded tokens computed at once with gradients: the same number on every rank.

        The jobs of a sweep try out what fits once for each size of stack.

        Args:
            engine: computes gradients.
            adapters: a stack of as many members as are computed at once.
            row_width: tokens of the longest row.
            device: computes.
            model_hash: digest of the base model's weights.
        """
        if self.tokens != "auto":
            return self.tokens
        shapes = sorted((name, tuple(stacked.shape)) for name, stacked in adapters.items())
        trial_key = (model_hash, type(engine).__name__, repr(shapes), str(row_width), str(device))
        if trial_key not in _fitting_tokens:
            engine.to(device)
            device_adapters = {name: stacked.to(device) for name, stacked in adapters.items()}
            fitting_tokens = find_fitting_tokens(engine, device_adapters, row_width, device)
            _fitting_tokens[trial_key] = min(gather_from_ranks(fitting_tokens))
        return _fitting_tokens[trial_key]
