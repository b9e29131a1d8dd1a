r"""Dropout on the inputs of LoRA adapters, with masks that belong to an example, not to its batch.

As LoRA's own dropout (Hu et al., 2022; PEFT's `lora_dropout`) it acts on what the adapter reads and
leaves the frozen path alone: y = W x + c·B A (z ∘ x), each z_d 0 with probability p and 1/(1 − p)
otherwise. A mask is drawn for each example, pass and adapted layer, and holds for all of the
example's tokens (Gal and Ghahramani, NIPS 2016): so a pass sees each example under one network
drawn at random, and the mask does not depend on padding.

Since A (z ∘ x) = (A ∘ z) x, dropping inputs is dropping columns of A. An engine therefore measures M
members on B examples as M·B members on one example each, and the gradient of A is that of A ∘ z,
times z. So all engines can do it.
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
    """Random masks; they depend on these attributes and the example's id alone.

    Attributes:
        probability: p of an input to be dropped, 0 <= p < 1.
        seed: the run's.
        mask_streams: a name for each stacked member's stream of masks.
        epoch: masks of different epochs are independent.
    """

    probability: float
    seed: int
    mask_streams: tuple[int | str, ...]
    epoch: int

    def draw_factors(self, example_ids: np.ndarray, member_slice: slice, adapters: Adapters) -> Adapters:
        """Draw the z of some members on some examples.

        Args:
            example_ids: [M, B] of these members.
            member_slice: which of the stacked members they are.
            adapters: parameter name -> [M, ...] of these members.

        Returns:
            Name of each A -> [M, B, D_in], of that parameter's type and device.
        """
        input_widths = {
            parameter_name: stacked.shape[-1]
            for parameter_name, stacked in sorted(adapters.items())
            if "lora_A" in parameter_name
        }
        total_width = sum(input_widths.values())
        uniforms = [
            [self.draw_uniforms(stream, int(example_id), total_width) for example_id in member_ids]
            for stream, member_ids in zip(self.mask_streams[member_slice], example_ids, strict=True)
        ]
        keep_mask = torch.from_numpy(np.asarray(uniforms) >= self.probability)  # [M, B, all D_in]
        layer_masks = keep_mask.split(list(input_widths.values()), dim=-1)
        return {
            parameter_name: layer_mask.to(adapters[parameter_name]) / (1 - self.probability)
            for parameter_name, layer_mask in zip(input_widths, layer_masks, strict=True)
        }

    def draw_uniforms(self, stream: int | str, example_id: int, count: int) -> np.ndarray:
        """Draw [count] float32 in [0, 1), the same for every p.

        So a smaller p drops some of what a larger one drops.
        """
        generator = numpy_rng(self.seed, "dropout", stream, self.epoch, example_id)
        return generator.random(count, dtype=np.float32)


def expand_adapters(adapters: Adapters, input_factors: Mapping[str, Tensor]) -> Adapters:
    """Give each of B examples adapters of its own: M members, [M, ...] -> [M·B, ...]."""
    stack_size, examples = next(iter(input_factors.values())).shape[:2]
    expanded_adapters = {}
    for parameter_name, stacked in adapters.items():
        expanded = stacked[:, None].expand(stack_size, examples, *stacked.shape[1:])
        if parameter_name in input_factors:
            expanded = expanded * input_factors[parameter_name][:, :, None]
        expanded_adapters[parameter_name] = expanded.flatten(0, 1)
    return expanded_adapters
