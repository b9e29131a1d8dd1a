"""The slow twin of dropout on adapters' inputs: PEFT's own dropout layer, with the mask put in its place."""

from contextlib import contextmanager

import torch
from torch import nn

from tests.reference.gradients import loop_gradients


class FixedMask(nn.Module):
    """Multiplies the inputs of all tokens by the same factors."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@contextmanager
def masked(model, factors):
    """PEFT's LoRA layers drop what `factors` (name of A -> [D_in]) says, inside this context."""
    layers = {name: model.get_submodule(name.split(".lora_A")[0]) for name in factors}
    before = {name: layer.lora_dropout["default"] for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.lora_dropout["default"] = FixedMask(factors[name])
        yield
    finally:
        for name, layer in layers.items():
            layer.lora_dropout["default"] = before[name]


def dropped_gradients(model, adapters, batch, lengths, dropout):
    """[M][B] losses and gradients: one member, one example, without padding, by autograd through PEFT's layers."""
    widths = {name: value.shape[-1] for name, value in sorted(adapters.items()) if "lora_A" in name}
    found = []
    for member, stream in enumerate(dropout.mask_streams):
        ids, labels = (t if t.dim() == 2 else t[member] for t in (batch.input_ids, batch.labels))
        known = batch.example_id if batch.example_id.dim() == 1 else batch.example_id[member]
        line = []
        for row, length in enumerate(lengths):
            drawn = torch.from_numpy(dropout.draw_uniforms(stream, int(known[row]), sum(widths.values())))
            factors, start = {}, 0
            for name, width in widths.items():
                kept = drawn[start : start + width] >= dropout.probability
                factors[name] = kept.to(adapters[name].dtype) / (1 - dropout.probability)
                start += width
            own = {name: value[member] for name, value in adapters.items()}
            with masked(model, factors):
                line.append(loop_gradients(model, own, ids[row, :length], labels[row, :length]))
        found.append(line)
    return found
