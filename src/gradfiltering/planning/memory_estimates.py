"""Memory and disk of planned work, from shapes."""

from collections.abc import Iterable, Mapping

import numpy as np
import psutil
import torch

from gradfiltering.data.batches import LengthBatches
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import world_size
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, TASK_GRADIENT_STAGE
from gradfiltering.gradients.memory import LOGIT_COPIES, ChunkMemory
from gradfiltering.models.causal_model import logit_bytes
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.row_passes import count_prompts, cut_prompts, list_micro_batches
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.planning.target_work import TARGET_STAGE, PlannedModel, PlannedTarget
from gradfiltering.runs.memory import MOST_FREED_BYTES, return_freed_memory

# Float32 copies of each adapter: itself, its gradient, the mean gradient, both moments, and those while it is stored.
ADAPTER_COPIES = 7
STORED_COPIES = 4  # of a member in the cache: adapter and moments, and the adapter once more for PEFT
LOG_BYTES, LOSS_BYTES = 24, 8  # of a row in a gradient log, and in losses of the base model
FORWARD_COPIES = 4  # widest tensors that live at once in a forward pass
STORED_SHARE = 1.5  # numbers that a layer stores for its backward, for each that goes in or out of its matrices
# What libraries hold on a processor once they have computed: so much for each byte of the weights, up to a limit. About
# 480 MB were measured with SmolLM2-135M (269 MB of weights), 50 and less with models of a few million parameters.
LIBRARY_SHARE, MOST_LIBRARY_BYTES = 1.8, 500 << 20
LOOKED_AT_UPDATES = 200  # of a target's training, whose largest micro-batch is looked for


def present_bytes(device: torch.device, shape: ModelShape) -> int:
    """Return what is taken whatever is computed: by the process and its libraries, or on a GPU by the weights."""
    if device.type == "cuda":
        return max(int(torch.cuda.memory_allocated(device)), shape.weight_bytes)
    return_freed_memory()
    library_bytes = min(MOST_LIBRARY_BYTES, int(LIBRARY_SHARE * shape.weight_bytes))
    return int(psutil.Process().memory_info().rss) + library_bytes


def held_bytes(device: torch.device, lasting_bytes: int, batch_bytes: int) -> int:
    """Return what a stage takes from the machine, beside what was there.

    On a processor batches of changing shapes leave gaps in the heap, as large in all as a batch when there were enough
    of them; what is freed between two batches is returned where it is more than `MOST_FREED_BYTES`. A pass without
    gradients frees its tensors in the order of the layers and leaves none.

    Args:
        device: that computes.
        lasting_bytes: of tensors that leave no gaps: those that live as long as the stage, or a pass without gradients.
        batch_bytes: of those that live as long as a batch.
    """
    gaps = 0 if device.type == "cuda" else min(batch_bytes, MOST_FREED_BYTES)
    return lasting_bytes + batch_bytes + gaps


def losses_bytes(
    shape: ModelShape, batch_tokens: int, examples: Examples, memory: ChunkMemory | None, device_type: str
) -> int:
    """Return what the largest batch of a pass without gradients takes.

    Args:
        shape: of the model.
        batch_tokens: padded tokens of a batch.
        examples: the rows.
        memory: of batches; None where none was measured.
        device_type: of the device that computes.
    """
    sizes = _list_batch_sizes(examples, LengthBatches(examples, batch_tokens, pad_id=0).cuts)
    if memory is None:
        return max(_forward_bytes(shape, tokens, row_width, device_type) for tokens, row_width in sizes)
    return max(memory.peak(tokens, row_width, 1) for tokens, row_width in sizes)


def ensemble_bytes(
    shape: ModelShape, context: MeasurementContext, memory: ChunkMemory | None, chunk_tokens: int
) -> tuple[int, int]:
    """Return what a stack of members takes: adapters with gradients and moments, and one chunk."""
    members = len(context.ensemble.trained_member_ids)
    adapters = members * ADAPTER_COPIES * 4 * shape.adapter_weights
    if memory is None:
        return adapters, losses_bytes(shape, 1, context.examples, None, context.device.type)
    row_width = int(context.examples.widths.max())
    tokens = min(chunk_tokens, members * context.ensemble.batch_size * row_width)
    return adapters, memory.peak(max(tokens, row_width), row_width, min(members, max(1, tokens // row_width)))


def tuning_bytes(
    target: PlannedTarget,
    models: Mapping[str, PlannedModel],
    examples: Examples,
    seed: int,
    memory: ChunkMemory | None,
) -> tuple[int, int]:
    """Return what fine-tuning takes: an adapter and the weights that are not there yet, and the largest micro-batch.

    Args:
        target: model and settings.
        models: that are compared; those in the cache are not trained.
        examples: rows that can be trained on.
        seed: of the run.
        memory: of micro-batches; None where none was measured.
    """
    shape, settings = target.shape, target.settings
    adapter = ADAPTER_COPIES * 4 * target.adapted_shape.adapter_weights
    weights = 0 if target.is_proxy else shape.weight_bytes  # the same model is loaded once
    if settings.shard_weights:  # and one layer at a time is whole
        weights = weights // world_size() + shape.weight_bytes // max(1, len(shape.layers))
    batch_bytes = 0
    for model in models.values():
        if model.adapter_folder is not None:
            continue
        training_set = model.training_set
        model_examples = examples.select(training_set.example_ids)
        micro_batches = list_micro_batches(
            model_examples, settings, seed, target.device_type, training_set.update_count, LOOKED_AT_UPDATES
        )
        for tokens, row_width in _list_batch_sizes(model_examples, micro_batches):
            if memory is None:
                micro_batch_bytes = _training_bytes(
                    shape, tokens, row_width, settings.gradient_checkpointing, target.device_type
                )
            else:
                micro_batch_bytes = memory.peak(tokens, row_width, 1)
            batch_bytes = max(batch_bytes, micro_batch_bytes)
    return weights + adapter, batch_bytes


def answer_bytes(target: PlannedTarget, memory: ChunkMemory | None) -> int:
    """Return what answers take beside the weights: a batch of prompts, their keys and values, and the last logits.

    Args:
        target: model and settings.
        memory: of passes without gradients; None where none was measured.
    """
    if target.generation is None or not target.prompt_lengths:
        return 0
    shape = target.shape
    prompts = count_prompts(cut_prompts(target.prompt_lengths, target.generation.batch_size)[0])
    row_width = prompts.padded // prompts.rows
    tokens = prompts.rows * (row_width + target.generation.max_new_tokens)
    keys_and_values = sum(layer.cache_width for layer in shape.layers) * shape.element_bytes * tokens
    logits = 3 * prompts.rows * shape.vocabulary * 4
    if memory is None:
        return keys_and_values + logits + _forward_bytes(shape, prompts.padded, row_width, target.device_type)
    prompt_bytes = prompts.padded * (memory.per_token + row_width * memory.per_attended)
    return int(memory.fixed + prompt_bytes + keys_and_values + logits)


def _list_batch_sizes(examples: Examples, batches: Iterable[np.ndarray]) -> list[tuple[int, int]]:
    """Return padded tokens and width of each batch of row positions."""
    widths = [int(examples.widths[row_positions].max()) for row_positions in batches]
    row_counts = [examples.sequence_count * len(row_positions) for row_positions in batches]
    return [(row_count * width, width) for row_count, width in zip(row_counts, widths, strict=True)]


def _forward_bytes(shape: ModelShape, tokens: int, row_width: int, device_type: str) -> int:
    """Return what a forward pass without gradients holds at most, by shapes alone."""
    width = max(linear.inputs + linear.outputs for layer in shape.layers for linear in layer.linears)
    heads = max(1, shape.layers[0].attention_width // 64)
    scores = 2 * tokens * row_width * heads
    held_logits = LOGIT_COPIES * min(logit_bytes(device_type), tokens * shape.vocabulary * shape.element_bytes)
    return int(shape.element_bytes * (FORWARD_COPIES * tokens * width + scores) + held_logits)


def _training_bytes(shape: ModelShape, tokens: int, row_width: int, recomputes_layers: bool, device_type: str) -> int:
    """Return what a micro-batch with its gradients holds at most, by shapes alone."""
    logits = LOGIT_COPIES * min(logit_bytes(device_type), tokens * shape.vocabulary * shape.element_bytes)
    stored = STORED_SHARE * shape.token_width * shape.element_bytes * tokens
    heads = max(1, shape.layers[0].attention_width // 64)
    if recomputes_layers:
        stored = stored / len(shape.layers) + len(shape.layers) * shape.width * shape.element_bytes * tokens
    scores = 2 * heads * tokens * row_width * shape.element_bytes
    return int(stored + scores + logits)


def adapter_bytes(shape: ModelShape) -> int:
    """Return the bytes of one adapter in float32; its gradient takes as many again."""
    return 4 * shape.adapter_weights


def member_bytes(shape: ModelShape) -> int:
    """Return what a trained member takes in the cache at one snapshot: adapter and moments, and its PEFT folder."""
    return STORED_COPIES * adapter_bytes(shape)


def disk_bytes(
    stage_name: str, stage_work: list[PlannedWork], context: MeasurementContext, target: PlannedTarget | None
) -> int:
    """Return what a stage adds to the cache; the run folder links to it."""
    added_bytes = 0
    for piece in stage_work:
        if piece.reused:
            continue
        added_bytes += piece.stored_bytes
        if piece.kind == "gradients":
            added_bytes += piece.counts.rows * LOG_BYTES
            if stage_name == TASK_GRADIENT_STAGE:
                added_bytes += piece.counts.rows * context.projection.width * 4
        elif piece.kind == "tuning" and target is not None:
            added_bytes += 4 * target.adapted_shape.adapter_weights
        elif piece.kind == "losses" and stage_name in (ENSEMBLE_STAGE, HELDOUT_MEMBER_STAGE):
            keeps_states = piece.stored_bytes or piece.device_bytes
            added_bytes += 0 if keeps_states else LOG_BYTES * piece.counts.rows  # a log without norms
        elif piece.kind == "losses" and stage_name != TARGET_STAGE:
            added_bytes += LOSS_BYTES * piece.counts.rows
    return added_bytes
