"""Layers whose frozen weights are spread over all processes, for targets that fit on no device of their own."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from gradfiltering.distributed.process_group import world_size
from gradfiltering.errors import UserError
from gradfiltering.models.adapted_layers import find_layers
from gradfiltering.models.quantization import kept_quantization

if TYPE_CHECKING:
    from gradfiltering.models.language_model import LanguageModel


def shard_layers(base_model: "LanguageModel", device: torch.device) -> None:
    """Leave each process 1 / (number of processes) of every layer's weights; what is sharded already stays as it is.

    Each layer is a unit of PyTorch's fully sharded data parallelism (`fully_shard`, FSDP2; Zhao et al., 2023, arXiv
    2304.11277): its weights are gathered before it computes and given up again after, forward and backward. Embeddings,
    the last norm and the output layer stay whole, and so do adapters that are attached later: these are small. All
    processes must go through the layers equally often.

    Of weights in 4 bits the packed bytes are sharded. Their constants, about 3 % as many bytes, stay whole.

    Args:
        base_model: frozen, without adapters, on the CPU or on the device.
        device: that computes; the shards are put there, one layer after the other.

    Raises:
        UserError: there is one process only, or the architecture has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if world_size() == 1:
        raise UserError("weights are spread over processes, and there is only one; start several, or keep them whole")
    layer_list = find_layers(base_model.model)
    if layer_list is None:
        raise UserError(
            f"{type(base_model.model).__name__} has no list of layers whose weights could be spread over processes; "
            "keep them whole"
        )
    mesh = init_device_mesh(device.type, (world_size(),))
    for layer in layer_list.layers:
        if not isinstance(layer, FSDPModule):
            # Each layer is a root of its own, as the model is never called as a whole; roots keep their weights else.
            with kept_quantization(layer):
                fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def find_sharded_parameters(model: nn.Module) -> list[str]:
    """Return the names of the parameters of which this process holds a part."""
    from torch.distributed.tensor import DTensor

    return [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
