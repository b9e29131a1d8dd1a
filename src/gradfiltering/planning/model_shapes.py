"""Shapes of a language model's matrix products, layer by layer: all that its operations follow from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from gradfiltering.models.adapted_layers import ALL_LAYERS, LayerChoice, choose_layers

# Projections that read what enters their layer: where that has no gradient, they need none with respect to it.
_READS_LAYER_INPUT = re.compile(r"(?:^|\.)(?:q|k|v|qkv|query|key|value|c_attn|query_key_value|in_proj|Wqkv)(?:_proj)?$")
_LAYER_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LinearShape:
    """A matrix that every token is multiplied by.

    Attributes:
        inputs, outputs: widths.
        rank: of its adapter, 0 without one.
        reads_layer_input: True for a projection of what enters the layer.
    """

    inputs: int
    outputs: int
    rank: int = 0
    reads_layer_input: bool = False

    @property
    def weights(self) -> int:
        """Numbers in the matrix."""
        return self.inputs * self.outputs

    @property
    def adapter_weights(self) -> int:
        """Numbers in A and B."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class LayerShape:
    """One layer of a model.

    Attributes:
        linears: its matrices.
        attention_width: heads times the width of a head, over which tokens are compared; 0 without attention.
    """

    linears: tuple[LinearShape, ...]
    attention_width: int

    @property
    def cache_width(self) -> int:
        """Numbers that generation keeps of each token: its keys and values, of which groups of heads may share some."""
        projected_width = sum(linear.outputs for linear in self.linears if linear.reads_layer_input)
        kept_width = projected_width - self.attention_width  # queries are not kept
        return kept_width if kept_width > 0 else 2 * self.attention_width

    @property
    def is_adapted(self) -> bool:
        """True where a matrix has an adapter."""
        return any(linear.rank for linear in self.linears)


@dataclass(frozen=True)
class ModelShape:
    """A causal language model, seen as matrix products.

    Attributes:
        layers: from the first.
        width: of the last hidden states.
        vocabulary: rows of the output layer.
        weight_bytes: of all weights, adapters left out.
        element_bytes: of a number in the hidden states.
    """

    layers: tuple[LayerShape, ...]
    width: int
    vocabulary: int
    weight_bytes: int
    element_bytes: int

    @property
    def head_weights(self) -> int:
        """Numbers in the output layer."""
        return self.width * self.vocabulary

    @property
    def matmul_weights(self) -> int:
        """Numbers in matrix products: all layers and the output layer."""
        return self.head_weights + sum(linear.weights for layer in self.layers for linear in layer.linears)

    @property
    def adapter_weights(self) -> int:
        """Numbers in one adapter."""
        return sum(linear.adapter_weights for layer in self.layers for linear in layer.linears)

    @property
    def first_adapted_layer(self) -> int:
        """Index of the first layer with an adapter; the number of layers where none has one."""
        return next((index for index, layer in enumerate(self.layers) if layer.is_adapted), len(self.layers))

    @property
    def token_width(self) -> int:
        """Numbers that one token becomes on its way, over all matrices; what activations take grows with it."""
        return sum(linear.inputs + linear.outputs for layer in self.layers for linear in layer.linears)

    def with_adapters(self, rank: int, layer_choice: LayerChoice = ALL_LAYERS) -> "ModelShape":
        """Return the same model with an adapter of a rank at every matrix of the chosen layers, and none elsewhere.

        Args:
            rank: of the adapters.
            layer_choice: as `choose_layers` has it.

        Raises:
            ValueError: the model has fewer layers.
        """
        adapted_layers = choose_layers(layer_choice, len(self.layers))
        ranks = [rank if index in adapted_layers else 0 for index in range(len(self.layers))]
        layers = tuple(
            replace(layer, linears=tuple(replace(linear, rank=layer_rank) for linear in layer.linears))
            for layer, layer_rank in zip(self.layers, ranks, strict=True)
        )
        return replace(self, layers=layers)


def read_shape(model: nn.Module) -> ModelShape:
    """Read the shape of a model, with adapters of PEFT or without; its weights may be on the meta device.

    Linear layers inside the model's layers are counted, each once; experts that are stacked parameters count with the
    share of them that a token goes through.

    Args:
        model: a causal language model.
    """
    base_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    adapter_name = str(model.active_adapter) if isinstance(model, PeftModel) else ""
    config = base_model.config.get_text_config()
    output_layer = base_model.get_output_embeddings()
    linears: dict[int, list[LinearShape]] = {}
    adapted_bases = {id(m.get_base_layer()) for m in base_model.modules() if isinstance(m, LoraLayer)}
    adapter_parts = {
        id(part)
        for module in base_model.modules()
        if isinstance(module, LoraLayer)
        for part in [*module.lora_A.values(), *module.lora_B.values()]
    }
    for module_name, module in base_model.named_modules():
        layer_match = _LAYER_INDEX.search(f"{module_name}.")
        if layer_match is None or module is output_layer or id(module) in adapted_bases | adapter_parts:
            continue
        layer_linears = linears.setdefault(int(layer_match[1]), [])
        reads_layer_input = _READS_LAYER_INPUT.search(module_name) is not None
        if isinstance(module, LoraLayer):
            inputs, outputs = _matrix_shape(module.get_base_layer())
            rank = module.r.get(adapter_name, 0)
            layer_linears.append(LinearShape(inputs, outputs, rank, reads_layer_input))
        elif isinstance(module, nn.Linear | Conv1D):
            layer_linears.append(LinearShape(*_matrix_shape(module), reads_layer_input=reads_layer_input))
        else:
            layer_linears += _expert_shapes(module, config)
    layers = [LayerShape(tuple(linears[index]), _attention_width(config)) for index in sorted(linears)]
    parameters = [value for name, value in base_model.named_parameters() if ".lora_" not in name]
    vocabulary, width = base_model.get_output_embeddings().weight.shape
    return ModelShape(
        layers=tuple(layers),
        width=int(width),
        vocabulary=int(vocabulary),
        weight_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        element_bytes=parameters[0].element_size(),
    )


def _matrix_shape(module: Any) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear layer, whatever way its matrix lies and however it is packed."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.in_features), int(module.out_features)


def _expert_shapes(module: nn.Module, config: Any) -> Iterable[LinearShape]:
    """Yield the part of stacked experts that one token goes through."""
    for parameter in module.parameters(recurse=False):
        if parameter.dim() == 3:
            expert_count = len(parameter)
            active_experts = getattr(config, "num_experts_per_tok", None) or expert_count
            yield LinearShape(int(parameter.shape[1]) * min(active_experts, expert_count), int(parameter.shape[2]))


def _attention_width(config: Any) -> int:
    head_count = getattr(config, "num_attention_heads", None) or 0
    head_width = getattr(config, "head_dim", None) or (config.hidden_size // head_count if head_count else 0)
    return int(head_count * head_width)
