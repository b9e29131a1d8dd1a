"""The frozen prefix: the layers below the first adapted one, whose results all members share.

With adapters in layers ℓ ≥ ℓ₀ only, the hidden states that enter layer ℓ₀ depend on row and base model alone. They are
made by the model's own forward, and put in by it, too: the layers below ℓ₀ hand on what they get, and in front of layer
ℓ₀ the states take its place. So embeddings, positions, rotary tables, masks and windows stay the model's own affair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradfiltering.gradients.unsupported import UnsupportedModelError
from gradfiltering.models.adapted_layers import find_layers, first_adapted_layer

if TYPE_CHECKING:
    from peft import PeftModel

HIDDEN_STATES = "hidden_states"  # the argument of a layer, where it is not the first


class FrozenPrefix:
    """The layers of a model below the first adapted one.

    Args:
        base_model: the model that the layers belong to.
        layers: all of its layers.
        first_layer: index ℓ₀ > 0 of the first adapted layer.

    Attributes:
        state_dtype, state_width: type and width D of the states; None and 0 before any were computed.
    """

    def __init__(self, base_model: Any, layers: Any, first_layer: int):
        self.base_model = base_model
        self.first_layer = first_layer
        self.state_dtype: torch.dtype | None = None
        self.state_width = 0
        self._frozen_layers = list(layers[:first_layer])
        self._adapted_layer = layers[first_layer]
        self._returned_values: list[int] | None = None  # of each frozen layer; 0 for a tensor

    @property
    def layer_range(self) -> str:
        """The frozen layers, for messages: `0-21`."""
        return f"0-{self.first_layer - 1}"

    @torch.no_grad()
    def compute(self, input_ids: Tensor) -> Tensor:
        """Compute the hidden states that enter the first adapted layer; nothing above it is computed.

        Args:
            input_ids: [rows, T] int64.

        Returns:
            [rows, T, D] in the type in which the model hands them on.

        Raises:
            UnsupportedModelError: the layers hand on something else.
        """
        output_lengths: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: output_lengths.append(_count_returned_values(output)))
            for layer in self._frozen_layers
        ]
        hooks.append(self._adapted_layer.register_forward_pre_hook(_interrupt, with_kwargs=True))
        try:
            self.base_model(input_ids=input_ids, use_cache=False)
        except _LayerReached as reached:
            hidden_states = reached.hidden_states
        else:
            raise UnsupportedModelError("the first adapted layer takes no part")
        finally:
            for hook in hooks:
                hook.remove()
        if len(output_lengths) != len(self._frozen_layers):
            raise UnsupportedModelError("the layers are not each called exactly once")
        if hidden_states.dim() != 3 or hidden_states.shape[:2] != input_ids.shape:
            raise UnsupportedModelError(f"states of shape {tuple(hidden_states.shape)} go from layer to layer")
        self._returned_values = output_lengths
        self.state_dtype, self.state_width = hidden_states.dtype, hidden_states.shape[2]
        return hidden_states

    @contextmanager
    def replaced_by(self, hidden_states: Tensor) -> Iterator[None]:
        """Let the model go on from these states, [rows, T, D], while the block runs."""
        assert self._returned_values is not None, "states come from `compute` alone"
        try:
            for layer, returned_values in zip(self._frozen_layers, self._returned_values, strict=True):
                layer.forward = _HandOn(returned_values)
            hook = self._adapted_layer.register_forward_pre_hook(_PutIn(hidden_states), with_kwargs=True)
            try:
                yield
            finally:
                hook.remove()
        finally:
            for layer in self._frozen_layers:
                layer.__dict__.pop("forward", None)


def find_prefix(model: "PeftModel") -> FrozenPrefix | None:
    """Find the layers below the first adapted one; None where there are none."""
    first_layer = first_adapted_layer(model)
    layer_list = find_layers(model.get_base_model())
    if first_layer == 0 or layer_list is None:
        return None
    return FrozenPrefix(model.get_base_model(), layer_list.layers, first_layer)


class _LayerReached(Exception):
    """Ends a forward pass in front of a layer."""

    def __init__(self, hidden_states: Tensor):
        super().__init__()
        self.hidden_states = hidden_states


def _interrupt(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    raise _LayerReached(_take_hidden_states(arguments, keywords))


def _take_hidden_states(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    hidden_states = arguments[0] if arguments else keywords.get(HIDDEN_STATES)
    if not isinstance(hidden_states, Tensor):
        raise UnsupportedModelError("a layer takes no hidden states")
    return hidden_states


def _count_returned_values(output: Any) -> int:
    """Return the length of a layer's tuple or list, 0 for a tensor."""
    if isinstance(output, Tensor):
        return 0
    if isinstance(output, tuple | list) and isinstance(output[0], Tensor):
        return len(output)
    raise UnsupportedModelError("a layer returns something else than hidden states")


class _HandOn:
    """The forward of a layer that returns what it gets, in the form in which the layer does.

    Further values, such as attention weights, are None; a model that needs them fails the comparison.
    """

    def __init__(self, returned_values: int):
        self.returned_values = returned_values

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        hidden_states = _take_hidden_states(arguments, keywords)
        return (hidden_states, *[None] * (self.returned_values - 1)) if self.returned_values else hidden_states


class _PutIn:
    """Replaces the states that come to a layer."""

    def __init__(self, hidden_states: Tensor):
        self.hidden_states = hidden_states

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        replaced_states = _take_hidden_states(arguments, keywords)
        if replaced_states.shape != self.hidden_states.shape:
            raise UnsupportedModelError(
                f"states of shape {tuple(replaced_states.shape)} come to the first adapted layer, instead of "
                f"{tuple(self.hidden_states.shape)}"
            )
        if arguments:
            return (self.hidden_states, *arguments[1:]), keywords
        return arguments, {**keywords, HIDDEN_STATES: self.hidden_states}
