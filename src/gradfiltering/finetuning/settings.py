"""Settings of LoRA fine-tuning."""

import math
from typing import Annotated, Literal

from annotated_types import Ge

from gradfiltering.models.lora import LoraSettings
from gradfiltering.options import NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelowOne, options
from gradfiltering.statistics.rounding import share_of_count


@options
class FineTuningSettings:
    """Settings of a target's fine-tuning.

    Attributes:
        epochs: passes over the training rows; a method that selects while training ignores it.
        batch_size: examples of one update.
        micro_batch_tokens: padded tokens computed at once; gradients accumulate over them, no
            result depends on it.
        gradient_checkpointing: compute the activations of each layer again in the backward pass instead of storing
            them: far less memory, a third more work, the same result.
        shard_weights: spread the frozen weights of each layer over all processes, which gather them as they get there,
            for a target that fits on no device; the same result.
        lr: peak learning rate of AdamW.
        schedule: decay of the learning rate to zero after the warm-up, or `constant`.
        warmup_share: share of the training spent on a linear warm-up.
        weight_decay: of AdamW.
        clip_norm: gradients are scaled down to this L2 norm; None for no clipping.
        records: points of the convergence curve, at even distance (start and end included).
        checkpoint_minutes: minutes between two checkpoints from which an interrupted training
            resumes.
        lora: the adapter.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    micro_batch_tokens: PositiveInt
    gradient_checkpointing: bool
    lr: PositiveFloat
    schedule: Literal["constant", "linear", "cosine"]
    warmup_share: ShareBelowOne
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat | None
    records: Annotated[int, Ge(2)]
    checkpoint_minutes: PositiveFloat
    lora: LoraSettings
    shard_weights: bool = False

    def learning_rate(self, progress: int, length: int) -> float:
        """Compute the learning rate of the next update.

        Args:
            progress: updates taken, or whatever else the training counts.
            length: the count at which training ends.
        """
        warmup_length = share_of_count(self.warmup_share, length)
        if progress < warmup_length:
            return self.lr * ((progress + 1) / (warmup_length + 1))
        decay_share = (progress - warmup_length) / max(1, length - warmup_length)
        if self.schedule == "linear":
            return self.lr * (1 - decay_share)
        if self.schedule == "cosine":
            return self.lr * (0.5 * (1 + math.cos(math.pi * decay_share)))
        return self.lr
