"""Division of work into batches; no result depends on it."""

from functools import cached_property
from typing import Literal, Self

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from gradfiltering.distributed.process_group import gather_from_ranks
from gradfiltering.errors import UserError
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.memory import find_fitting_tokens
from gradfiltering.models.lora import Adapters
from gradfiltering.options import NonNegativeInt, PositiveInt, model_validator, options
from gradfiltering.runs.progress import progress_bar

FORWARD_TOKENS = 4096  # padded tokens of one batch in a forward pass, where the number is left open
GPU_FORWARD_TOKENS = 32768  # which a GPU is busy with for longer than the CPU takes to launch the pass

_fitting_tokens: dict[tuple[str, ...], int] = {}  # numbers of tokens that this process has tried


@options
class BatchSettings:
    """Sizes of batches.

    Attributes:
        tokens: padded tokens computed at once, over members and examples; `auto` for as many as pay and fit.
        workers: processes that prepare batches.
        memory_limit: most memory that one chunk of `auto` takes, in bytes or as `8GB`; None for half of what is free.
        prefix_limit: the most that is kept, for one set of rows, of what the layers below the first adapter hand on, in
            bytes or as `20GB`: in the memory of a single GPU that has room for it, else on the disk. Where it would be
            more, these layers are computed again for each batch.
    """

    tokens: PositiveInt | Literal["auto"] = "auto"
    workers: NonNegativeInt = 0
    memory_limit: PositiveInt | str | None = None
    prefix_limit: NonNegativeInt | str = "20GB"

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        for name, least_bytes in (("memory_limit", 1), ("prefix_limit", 0)):
            try:
                limit_bytes = _parse_bytes(getattr(self, name))
            except ValidationError:
                limit_bytes = -1
            if limit_bytes is not None and limit_bytes < least_bytes:
                raise UserError(
                    f"{getattr(self, name)} is no amount of memory; give bytes, or a number with a unit such as 8GB",
                    arguments=(name,),
                )
        return self

    @cached_property
    def memory_limit_bytes(self) -> int | None:
        """The limit of a chunk in bytes."""
        return _parse_bytes(self.memory_limit)

    @property
    def prefix_limit_bytes(self) -> int:
        """The limit of kept states in bytes."""
        return _parse_bytes(self.prefix_limit) or 0

    def forward_tokens(self, device: torch.device) -> int:
        """Return the padded tokens of one batch in a forward pass on a device."""
        if self.tokens != "auto":
            return self.tokens
        return GPU_FORWARD_TOKENS if device.type == "cuda" else FORWARD_TOKENS

    def settle_tokens(
        self, engine: GradientEngine, adapters: Adapters, row_width: int, device: torch.device, model_hash: str
    ) -> int:
        """Return the padded tokens computed at once with gradients: the same number on every rank.

        The jobs of a sweep plan and try what fits once for each size of stack.

        Args:
            engine: computes gradients.
            adapters: a stack of as many members as are computed at once.
            row_width: tokens of the longest row.
            device: computes.
            model_hash: digest of the base model.
        """
        if self.tokens != "auto":
            return self.tokens
        shapes = sorted((name, tuple(stacked.shape)) for name, stacked in adapters.items())
        trial_key = (
            model_hash,
            type(engine).__name__,
            repr(shapes),
            str(row_width),
            str(device),
            str(self.memory_limit),
        )
        if trial_key not in _fitting_tokens:
            engine.to(device)
            device_adapters = {name: stacked.to(device) for name, stacked in adapters.items()}
            with progress_bar("trying out how much fits into memory"):
                fitting_tokens = find_fitting_tokens(
                    engine, device_adapters, row_width, device, self.memory_limit_bytes
                )
            _fitting_tokens[trial_key] = min(gather_from_ranks(fitting_tokens))
        return _fitting_tokens[trial_key]


def _parse_bytes(amount: int | str | None) -> int | None:
    return None if amount is None else int(TypeAdapter(ByteSize).validate_python(amount))
