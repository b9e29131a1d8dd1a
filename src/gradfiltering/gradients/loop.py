"""Per-example gradients one example and one member at a time, by ordinary autograd."""

import torch
from torch import Tensor
from torch.func import functional_call

from gradfiltering.data.batches import IGNORED
from gradfiltering.gradients.engine import GradientEngine, Measurement, Tally
from gradfiltering.models.lora import Adapters


class LoopEngine(GradientEngine):
    """The slow engine, for checking and for timing: what most implementations do."""

    def _chunk(self, adapters: Adapters, input_ids: Tensor, labels: Tensor, tally: Tally) -> Measurement:
        members = next(iter(adapters.values())).shape[0]
        losses, gradients = [], []
        for member in range(members):
            own = {name: value[member].detach().requires_grad_() for name, value in adapters.items()}
            rows = (input_ids, labels) if input_ids.dim() == 2 else (input_ids[member], labels[member])
            with torch.enable_grad():
                for ids, targets in zip(*rows, strict=True):
                    stop = int((targets != IGNORED).nonzero().max()) + 1  # what follows is padding
                    inputs = {"input_ids": ids[None, :stop], "use_cache": False}
                    logits = functional_call(self.model, own, (), inputs).logits
                    loss = self.objective(logits, targets[None, :stop])[0]
                    found = torch.autograd.grad(loss, list(own.values()))
                    losses.append(loss.detach())
                    gradients.append(dict(zip(own, found, strict=True)))
        for name in adapters:
            # M·B × [...] -> [M, B, ...]
            tally.add(name, torch.stack([one[name] for one in gradients]).unflatten(0, (members, -1)))
        return tally.measurement(torch.stack(losses).view(members, -1))
