"""Floating-point operations of passes over rows, from shapes: two for each multiplication of a matrix product.

For τ padded tokens, of which an output layer sees K at response positions, in rows padded to T tokens:

    a matrix [i, o], forward or backward to its inputs                2·τ·i·o
    its adapter of rank R, forward                                    2·τ·R·(i + o)
    its adapter, backward: two gradients, and back to the inputs      2·τ·R·(2·i + 2·o)
    attention over a width W, forward (QKᵀ and its product with V)    4·Σ τ·T·W
    attention, backward                                               8·Σ τ·T·W
    output layer [D, V], with its gradient 4·K·D·V, without            2·K·D·V

Frozen layers below the first adapted one have no backward, and what enters the first adapted one needs no gradient.
"""

from dataclasses import dataclass, fields

from gradfiltering.planning.model_shapes import LayerShape, ModelShape


@dataclass(frozen=True)
class TokenCounts:
    """Sizes of a pass, over members and rows.

    Attributes:
        rows: that pass through, each time they do.
        tokens: without padding.
        padded: τ, with padding.
        attended: Σ τ·T: each padded token times the width of its batch.
        responses: K, positions whose logits are made.
        steps: batches, or updates of the optimiser.
    """

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    attended: int = 0
    responses: int = 0
    steps: int = 0

    def __add__(self, more_counts: "TokenCounts") -> "TokenCounts":
        return TokenCounts(*(getattr(self, item.name) + getattr(more_counts, item.name) for item in fields(self)))

    def times(self, factor: int) -> "TokenCounts":
        """Return the counts of as many such passes."""
        return TokenCounts(*(factor * getattr(self, item.name) for item in fields(self)))


def forward_operations(shape: ModelShape, counts: TokenCounts, with_adapters: bool = False) -> int:
    """Count a forward pass through all layers, without the output layer."""
    return sum(_forward_layer(layer, counts, with_adapters) for layer in shape.layers)


def backward_operations(shape: ModelShape, counts: TokenCounts) -> int:
    """Count a backward pass to all adapters, without the output layer."""
    first_layer = shape.first_adapted_layer
    return sum(
        _backward_layer(layer, counts, is_first=index == first_layer)
        for index, layer in enumerate(shape.layers)
        if index >= first_layer
    )


def frozen_operations(shape: ModelShape, counts: TokenCounts) -> int:
    """Count a forward pass through the layers below the first adapted one, which members can share."""
    return sum(_forward_layer(layer, counts, False) for layer in shape.layers[: shape.first_adapted_layer])


def head_operations(shape: ModelShape, positions: int) -> int:
    """Count the output layer at some positions, forward or backward to its inputs."""
    return 2 * positions * shape.head_weights


def gradient_operations(shape: ModelShape, counts: TokenCounts, responses_only: bool = True) -> int:
    """Count per-example gradients: a forward and a backward, as an engine, a training step or a snapshot pass takes it.

    Args:
        shape: with adapters.
        counts: of the pass.
        responses_only: the output layer sees response positions alone, else all.
    """
    positions = counts.responses if responses_only else counts.padded
    layers = forward_operations(shape, counts, with_adapters=True) + backward_operations(shape, counts)
    return layers + 2 * head_operations(shape, positions)


def loss_operations(
    shape: ModelShape, counts: TokenCounts, with_adapters: bool = False, responses_only: bool = True
) -> int:
    """Count losses without gradients.

    Args:
        shape: of the model.
        counts: of the pass.
        with_adapters: the shape has adapters, and they are gone through.
        responses_only: the output layer sees response positions alone, else all.
    """
    positions = counts.responses if responses_only else counts.padded
    return forward_operations(shape, counts, with_adapters) + head_operations(shape, positions)


def generation_operations(shape: ModelShape, prompt_counts: TokenCounts, batch_rows: int, new_tokens: int) -> int:
    """Count the answers to one batch of prompts, with a cache of keys and values.

    Args:
        shape: with adapters.
        prompt_counts: of the prompts, padded to the longest.
        batch_rows: prompts in the batch.
        new_tokens: forward passes, the one over the prompts included.
    """
    prompt_width = prompt_counts.padded // max(1, batch_rows)
    later_steps = new_tokens - 1
    later_counts = TokenCounts(
        padded=batch_rows * later_steps,
        attended=batch_rows * sum(prompt_width + step for step in range(1, later_steps + 1)),
    )
    layers = sum(forward_operations(shape, counts, with_adapters=True) for counts in (prompt_counts, later_counts))
    return layers + head_operations(shape, batch_rows * new_tokens)


def _forward_layer(layer: LayerShape, counts: TokenCounts, with_adapters: bool) -> int:
    matrices = sum(linear.weights + (linear.adapter_weights if with_adapters else 0) for linear in layer.linears)
    return 2 * counts.padded * matrices + 4 * counts.attended * layer.attention_width


def _backward_layer(layer: LayerShape, counts: TokenCounts, is_first: bool) -> int:
    """Count the gradients of one layer's adapters, and the way back to its inputs."""
    matrices = 0
    for linear in layer.linears:
        needs_input_gradient = not (is_first and linear.reads_layer_input)
        matrices += linear.rank * (linear.inputs + 2 * linear.outputs)  # of A; of B, and of what enters B
        if needs_input_gradient:
            matrices += linear.weights + linear.rank * linear.inputs
    return 2 * counts.padded * matrices + 8 * counts.attended * layer.attention_width
