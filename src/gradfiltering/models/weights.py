"""Facts about a model: digests that name it, or an adapter, and the size of its matrix products."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradfiltering.models.adapted_layers import find_layers, first_adapted_layer
from gradfiltering.models.quantization import weight_shape

if TYPE_CHECKING:
    from peft import PeftModel

BASE_MODEL_LOCATION = ("base_model_name_or_path", "revision")  # in an adapter's configuration


# Options of a configuration that change no result, or are known from the weights; like all that begin with _.
UNUSED_IN_FORWARD = {"transformers_version", "torch_dtype", "dtype", "use_cache"}


def hash_model(model: nn.Module) -> str:
    """Digest of a model: its parameters and buffers, by name, type, shape and bytes, and its configuration.

    Equal weights compute something else with other numbers of heads, rotary bases or scales.
    """
    digest = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if config is not None:
        config_values = {
            option: value
            for option, value in config.to_dict().items()
            if not option.startswith("_") and option not in UNUSED_IN_FORWARD
        }
        digest.update(json.dumps(config_values, sort_keys=True, default=str).encode())
    for parameter_name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{parameter_name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw_bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw_bytes.numpy())
    return digest.hexdigest()[:32]


def hash_adapter(folder: Path) -> str:
    """Digest of a PEFT adapter's weights and configuration; its base model's location is left out."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config_values = {option: value for option, value in config.items() if option not in BASE_MODEL_LOCATION}
    digest = hashlib.sha256(json.dumps(config_values, sort_keys=True).encode())
    digest.update((folder / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()[:32]


def count_matmul_weights(model: nn.Module) -> int:
    """Count the weights in matrix products: all matrices, quantised ones too, a tied embedding once for the logits."""
    matrix_sizes = {
        id(weight): weight_shape(weight).numel()
        for parameter_name, weight in model.named_parameters()
        if weight.dim() == 2 and "wpe" not in parameter_name
    }
    causal_model: Any = model  # a PEFT model hands on what it does not declare
    embedding: Tensor = causal_model.get_input_embeddings().weight
    output_weight: Tensor = causal_model.get_output_embeddings().weight
    return sum(matrix_sizes.values()) - (0 if embedding is output_weight else embedding.numel())


def count_frozen_weights(model: "PeftModel") -> int:
    """Count the weights in matrix products of the layers below the first adapted one."""
    layer_list = find_layers(model.get_base_model())
    if layer_list is None:
        return 0
    frozen_layers = layer_list.layers[: first_adapted_layer(model)]
    return sum(weight_shape(weight).numel() for weight in frozen_layers.parameters() if weight.dim() == 2)
