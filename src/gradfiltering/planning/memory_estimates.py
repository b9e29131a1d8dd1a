"""Memory and disk of planned work, from shapes."""

import psutil
import torch

from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import world_size
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.evidence.heldout_member import HELDOUT_MEMBER_STAGE
from gradfiltering.evidence.measurers import ENSEMBLE_STAGE, TASK_GRADIENT_STAGE
from gradfiltering.gradients.memory import LOGIT_COPIES, ChunkMemory
from gradfiltering.models.causal_model import CHUNK_BYTES
from gradfiltering.planning.model_shapes import ModelShape
from gradfiltering.planning.run_plan import PlannedWork
from gradfiltering.planning.target_work import TARGET_STAGE, PlannedTarget

# Float32 copies of each adapter: itself, its gradient, the mean gradient, both moments, and those while it is stored.
ADAPTER_COPIES = 7
STORED_COPIES = 4  # of a member in the cache: adapter and moments, and the adapter once more for PEFT
LOG_BYTES, LOSS_BYTES = 24, 8  # of a row in a gradient log, and in losses of the base model
CPU_OVERHEAD = 1.3  # gaps between tensors of many sizes, and what libraries keep; 1.1 to 1.6 measured
FORWARD_COPIES = 4  # widest tensors that live at once in a forward pass
STORED_SHARE = 1.5  # numbers that a layer stores for its backward, for each that goes in or out of its matrices


def present_bytes(device: torch.device, shape: ModelShape) -> int:
    """Return what is taken now: by the process, or on a GPU by the weights that go there."""
    if device.type == "cuda":
        return max(int(torch.cuda.memory_allocated(device)), shape.weight_bytes)
    return int(psutil.Process().memory_info().rss)


def held_bytes(device: torch.device, needed_bytes: int) -> int:
    """Return what is taken from the machine for so many bytes of tensors."""
    return needed_bytes if device.type == "cuda" else int(CPU_OVERHEAD * needed_bytes)


def forward_bytes(shape: ModelShape, batch_tokens: int, examples: Examples) -> int:
    """Return what a forward pass without gradients holds at most."""
    width = max(linear.inputs + linear.outputs for layer in shape.layers for linear in layer.linears)
    row_width = int(examples.widths.max())
    tokens = max(row_width, min(batch_tokens, int(examples.lengths.sum())))
    heads = max(1, shape.layers[0].attention_width // 64)
    scores = 2 * tokens * row_width * heads
    logit_bytes = LOGIT_COPIES * min(CHUNK_BYTES, tokens * shape.vocabulary * shape.element_bytes)
    return int(shape.element_bytes * (FORWARD_COPIES * tokens * width + scores) + logit_bytes)


def ensemble_bytes(
    shape: ModelShape, context: MeasurementContext, memory: ChunkMemory | None, chunk_tokens: int
) -> int:
    """Return what a stack of members takes: adapters, gradients and moments, and one chunk."""
    members = len(context.ensemble.trained_member_ids)
    adapters = members * ADAPTER_COPIES * 4 * shape.adapter_weights
    if memory is None:
        return adapters + forward_bytes(shape, 1, context.examples)
    row_width = int(context.examples.widths.max())
    tokens = min(chunk_tokens, members * context.ensemble.batch_size * row_width)
    return adapters + memory.peak(max(tokens, row_width), row_width, min(members, max(1, tokens // row_width)))


def tuning_bytes(target: PlannedTarget, examples: Examples) -> int:
    """Return what fine-tuning takes: weights, an adapter, and a micro-batch."""
    shape, settings = target.shape, target.settings
    row_width = int(examples.widths.max())
    tokens = max(row_width, min(settings.micro_batch_tokens, settings.batch_size * row_width))
    logits = LOGIT_COPIES * min(CHUNK_BYTES, tokens * shape.vocabulary * shape.element_bytes)
    stored = STORED_SHARE * shape.token_width * shape.element_bytes * tokens
    heads = max(1, shape.layers[0].attention_width // 64)
    if settings.gradient_checkpointing:
        stored = stored / len(shape.layers) + len(shape.layers) * shape.width * shape.element_bytes * tokens
    scores = 2 * heads * tokens * row_width * shape.element_bytes
    adapter = ADAPTER_COPIES * 4 * target.adapted_shape.adapter_weights
    weights = 0 if target.is_proxy else shape.weight_bytes  # the same model is loaded once
    if settings.shard_weights:  # and one layer at a time is whole
        weights = weights // world_size() + shape.weight_bytes // max(1, len(shape.layers))
    return int(weights + adapter + stored + scores + logits)


def answer_bytes(target: PlannedTarget) -> int:
    """Return what answers take, beside the weights: keys and values of one batch, and the logits of its last tokens."""
    if target.generation is None or not target.prompt_lengths:
        return 0
    shape = target.shape
    rows = min(target.generation.batch_size, len(target.prompt_lengths))
    width = max(target.prompt_lengths) + target.generation.max_new_tokens
    keys_and_values = 2 * sum(layer.attention_width for layer in shape.layers) * shape.element_bytes * rows * width
    return int(2 * keys_and_values + 3 * rows * shape.vocabulary * 4)


def adapter_bytes(shape: ModelShape) -> int:
    """Return what one adapter takes, and its gradient, in float32."""
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
            added_bytes += 0 if piece.stored_bytes else LOG_BYTES * piece.counts.rows  # a log without norms
        elif piece.kind == "losses" and stage_name != TARGET_STAGE:
            added_bytes += LOSS_BYTES * piece.counts.rows
    return added_bytes
