"""Per-example gradients of an ensemble as other libraries compute them, for `bench_peers.py`.

Each function prepares a PEFT model, which is then the library's alone, and returns (adapters, batch) -> [M, B] norms of
the gradients of each row's mean response NLL over all LoRA parameters. Neither library stacks members: their weights
are copied into the model one after the other. The members' mean gradients are computed by the same backward pass.
"""

from collections.abc import Callable, Iterable

import torch
from peft import PeftModel
from torch import Tensor

from gradfiltering.data.batches import Batch
from gradfiltering.models.causal_model import SplitModel
from gradfiltering.models.lora import Adapters, member_count
from gradfiltering.models.objectives import ResponseNLL

MeasureNorms = Callable[[Adapters, Batch], Tensor]


def bergson_norms(model: PeftModel) -> MeasureNorms:
    """Compute norms by bergson's `GradientCollector`, as its `CollectorComputer` drives it.

    Gradients are neither projected nor normalised nor written to disk, and `loss_reduction` is `mean` instead of its
    default, a sum over tokens.
    """
    from bergson.collector.collector import fwd_bwd_factory
    from bergson.collector.gradient_collectors import GradientCollector
    from bergson.config import IndexConfig
    from datasets import Dataset

    config = IndexConfig(run_path="unused", loss_reduction="mean")
    forward_backward = fwd_bwd_factory(config)
    module_names = {name.rpartition(".")[0] for name in _trainable_parameters(model)}
    collector = GradientCollector(
        model=model,
        cfg=config,
        target_modules=module_names,
        data=Dataset.from_dict({"input_ids": []}),
        skip_index=True,
    )

    def measure(adapters: Adapters, batch: Batch) -> Tensor:
        member_norms = []
        for member in range(member_count(adapters)):
            _load_member(model, adapters, member)
            with collector.with_batch():
                forward_backward(model, batch.input_ids, batch.labels, {})
            member_norms.append(_norms(collector.mod_grads.values()))
            collector.mod_grads.clear()
        return torch.stack(member_norms)

    return measure


def opacus_norms(model: PeftModel) -> MeasureNorms:
    """Compute norms from the `grad_sample` that Opacus' `GradSampleModule` leaves at each parameter.

    Opacus records activations of modules in training mode only ("No activations detected" otherwise). So the LoRA
    layers are set to it, which have no dropout, and the rest of the model is not.
    """
    from opacus import GradSampleModule

    for name in _trainable_parameters(model):
        model.get_submodule(name.rpartition(".")[0]).train()
    recording_model = GradSampleModule(model, loss_reduction="sum")
    split_model, objective = SplitModel(recording_model), ResponseNLL()

    def measure(adapters: Adapters, batch: Batch) -> Tensor:
        member_norms = []
        for member in range(member_count(adapters)):
            _load_member(model, adapters, member)
            objective(split_model, batch).sum().backward()
            trained_parameters = [value for value in recording_model.parameters() if value.requires_grad]
            member_norms.append(_norms(value.grad_sample for value in trained_parameters))
            recording_model.zero_grad(set_to_none=True)
        return torch.stack(member_norms)

    return measure


def _trainable_parameters(model: PeftModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _load_member(model: PeftModel, adapters: Adapters, member: int) -> None:
    """Copy one member's weights into the model."""
    for name, parameter in _trainable_parameters(model).items():
        parameter.copy_(adapters[name][member])


def _norms(gradients: Iterable[Tensor]) -> Tensor:
    """Compute [B] norms over gradients of shape [B, ...]."""
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
