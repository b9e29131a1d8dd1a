"""Passes over all rows with the parameters frozen."""

from collections.abc import Iterable

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader

from gradfiltering.data.batches import Batch
from gradfiltering.data.examples import Examples
from gradfiltering.distributed.process_group import gather, rank, total
from gradfiltering.gradients.dropout import Dropout
from gradfiltering.gradients.engine import GradientEngine
from gradfiltering.gradients.projection import GradientSketch
from gradfiltering.gradients.statistics import GradientStatistic
from gradfiltering.models.causal_model import split_model
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective
from gradfiltering.runs.gradient_log import EpochLog, EpochRecorder


def measure_all(
    engine: GradientEngine,
    adapters: Adapters,
    examples: Examples,
    batches: DataLoader,
    title: str,
    projection: GradientSketch | None = None,
    dropout: Dropout | None = None,
) -> tuple[EpochLog, np.ndarray | None]:
    """Loss and gradient norm of every example under every member, parameters frozen, dropout off unless given.

    Args:
        engine: measures.
        adapters: the members.
        examples: all of them.
        batches: this process's share of them.
        title: what the progress bar says.
        projection: made of every gradient in the same pass, None for none.
        dropout: of the adapters' inputs, None for none.

    Returns:
        The epoch's log, [M, N], and the projections, [M, N, K] float32.
    """
    device = next(iter(adapters.values())).device
    members = next(iter(adapters.values())).shape[0]
    recorder = EpochRecorder(examples.example_ids, examples.response_tokens, members)
    statistics: dict[str, GradientStatistic] = {} if projection is None else {"projection": projection}
    projected = None if projection is None else np.zeros((members, len(examples), projection.width), dtype=np.float32)
    for batch in track(batches, description=title, transient=True, disable=rank() > 0):
        there = batch.to(device)
        measured = engine.measure(adapters, there, with_mean_gradient=False, statistics=statistics, dropout=dropout)
        recorder.add(batch.example_id.numpy(), measured.grad_norm.cpu().numpy(), measured.loss.cpu().numpy())
        if projected is not None:
            places = np.searchsorted(examples.example_ids, batch.example_id.numpy())
            projected[:, places] = measured.statistics["projection"].float().cpu().numpy()
    # As in the log, every other process has 0 where this one measured.
    return recorder.finish(), None if projected is None else total(projected)


@torch.inference_mode()
def response_losses(
    model: torch.nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[int, float]:
    """Objective of each example under a plain model: example id -> loss in nats per response token.

    `batches` are this process's share; what comes back is of all processes.
    """
    model.to(device).eval()
    split = split_model(model)
    losses: dict[int, float] = {}
    for batch in batches:
        there = batch.to(device)
        loss = objective(split, there)
        losses.update(zip(batch.example_id.tolist(), loss.float().cpu().tolist(), strict=True))
    return {example_id: loss for some in gather(losses) for example_id, loss in some.items()}
