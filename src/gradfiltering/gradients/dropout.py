r"""Dropout on the inputs of LoRA adapters, with masks that belong to an example and not to its batch.

As LoRA's own dropout (Hu et al., 2022; PEFT's `lora_dropout`) it acts on what the adapter reads and leaves the frozen
path alone: y = W x + c·B A (z ∘ x), each z_d 0 with probability p and 1/(1 − p) otherwise. A mask is drawn for each
example, pass and adapted layer, and holds for all of the example's tokens (Gal and Ghahramani, NIPS 2016): so a pass
sees each example under one network drawn at random, and the mask does not depend on padding.

Since A (z ∘ x) = (A ∘ z) x, dropping inputs is dropping columns of A. An engine therefore measures M members on B
examples as M·B members on one example each, and the gradient of A is that of A ∘ z, times z. So all engines can do it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradfiltering.models.lora import Adapters
from gradfiltering.seeding import numpy_rng


@dataclass(frozen=True)
class Dropout:
    """What is dropped; it depends on these attributes and the example's id alone.

    Attributes:
        probability: p of an input to be dropped, 0 <= p < 1.
        seed: the run's.
        passes: a name for each stacked member's stream of masks.
        epoch: masks of different epochs are independent.
    """

    probability: float
    seed: int
    passes: tuple[int | str, ...]
    epoch: int

    def factors(self, example_id: np.ndarray, own: slice, adapters: Adapters) -> Adapters:
        """The z of some members on some examples.

        Args:
            example_id: [M, B] of these members.
            own: which of the stacked members they are.
            adapters: parameter name -> [M, ...] of these members.

        Returns:
            Name of each A -> [M, B, D_in], of that parameter's type and device.
        """
        widths = {name: value.shape[-1] for name, value in sorted(adapters.items()) if "lora_A" in name}
        drawn = [
            [self.uniforms(stream, int(one), sum(widths.values())) for one in row]
            for stream, row in zip(self.passes[own], example_id, strict=True)
        ]
        kept = torch.from_numpy(np.asarray(drawn) >= self.probability)  # [M, B, all D_in]
        parts = kept.split(list(widths.values()), dim=-1)
        return {
            name: part.to(adapters[name].device).to(adapters[name].dtype) / (1 - self.probability)
            for name, part in zip(widths, parts, strict=True)
        }

    def uniforms(self, stream: int | str, example_id: int, count: int) -> np.ndarray:
        """[count] float32 in [0, 1), the same for every p: a smaller p drops some of what a larger one drops."""
        return numpy_rng(self.seed, "dropout", stream, self.epoch, example_id).random(count, dtype=np.float32)


def per_example(adapters: Adapters, factors: Mapping[str, Tensor]) -> Adapters:
    """Adapters of M members, [M, ...], as each of B examples meets them, [M·B, ...]."""
    members, examples = next(iter(factors.values())).shape[:2]
    found = {}
    for name, value in adapters.items():
        wide = value[:, None].expand(members, examples, *value.shape[1:])
        found[name] = (wide * factors[name][:, :, None] if name in factors else wide).flatten(0, 1)
    return found
