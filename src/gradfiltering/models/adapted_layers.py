"""The list of layers that a language model is made of, and the first of them that has an adapter."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LAYERS = "all"
LAST_LAYERS = re.compile(r"last_([1-9]\d*)")
LayerChoice = str | int | float | Sequence[int]


class LayerList(NamedTuple):
    """The layers that a model goes through one after the other.

    Attributes:
        name: of the list among the model's modules, such as `model.layers`.
        layers: the layers, from the first.
    """

    name: str
    layers: nn.ModuleList


def find_layers(base_model: nn.Module) -> LayerList | None:
    """Find a model's list of layers: of the lists that lie in no other list, the one with the most weights.

    Args:
        base_model: a language model, with LoRA layers or without.

    Returns:
        None where the model has no list of layers.
    """
    outermost_lists: list[LayerList] = []
    for module_name, module in base_model.named_modules():
        is_inside = any(module_name.startswith(f"{outer.name}.") for outer in outermost_lists)
        if isinstance(module, nn.ModuleList) and len(module) and not is_inside:
            outermost_lists.append(LayerList(module_name, module))
    return max(outermost_lists, key=lambda layer_list: _count_weights(layer_list.layers), default=None)


def choose_layers(choice: LayerChoice, layer_count: int) -> list[int]:
    """Return the indices of the chosen layers, ascending.

    Args:
        choice: `all`; `last_8` or 8 for the last eight; 0.25 for the last quarter, rounded up; or a list of indices.
        layer_count: layers of the model.

    Raises:
        ValueError: the model has fewer layers.
    """
    if choice == ALL_LAYERS:
        return list(range(layer_count))
    if isinstance(choice, float):
        return list(range(layer_count - math.ceil(choice * layer_count), layer_count))
    last_count = count_last_layers(choice)
    if last_count is not None:
        if last_count > layer_count:
            raise ValueError(f"asks for the last {last_count} layers, and the model has {layer_count}")
        return list(range(layer_count - last_count, layer_count))
    assert not isinstance(choice, str | int)
    missing_layers = sorted({index for index in choice if index >= layer_count})
    if missing_layers:
        missing_text = ", ".join(map(str, missing_layers))
        raise ValueError(f"names layers that do not exist ({missing_text}); the model has 0 to {layer_count - 1}")
    return sorted(set(choice))


def count_last_layers(choice: LayerChoice) -> int | None:
    """Return 8 for `last_8` and for 8; None for a choice that is no number of last layers."""
    if isinstance(choice, str):
        match = LAST_LAYERS.fullmatch(choice)
        return int(match[1]) if match else None
    return choice if isinstance(choice, int) else None


def first_adapted_layer(model: "PeftModel") -> int:
    """Return the index of the first layer with an adapter: what enters it depends on row and base model alone.

    Returns:
        0 where that is the first layer, where something before the layers may have an adapter, or where the model has
        no list of layers.
    """
    from peft.tuners.lora import LoraLayer

    base_model: Any = model.get_base_model()
    layer_list = find_layers(base_model)
    if layer_list is None:
        return 0
    adapted_layers = []
    for module_name, module in base_model.named_modules():
        if isinstance(module, LoraLayer) and module is not base_model.get_output_embeddings():
            layer_index = index_of_layer(module_name, layer_list)
            if layer_index is None:
                return 0
            adapted_layers.append(layer_index)
    return min(adapted_layers, default=0)


def index_of_layer(module_name: str, layer_list: LayerList) -> int | None:
    """Return the index of the layer that a module lies in; None where it lies in none."""
    if not module_name.startswith(f"{layer_list.name}."):
        return None
    return int(module_name.removeprefix(f"{layer_list.name}.").partition(".")[0])


def _count_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
