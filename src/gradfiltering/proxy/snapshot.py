"""Passes over all rows with the parameters frozen."""

from collections.abc import Iterable

import torch
from rich.progress import track
from torch.utils.data import DataLoader

from gradfiltering.data.batches import Batch
from gradfiltering.data.examples import Examples
from gradfiltering.proxy.devices import gather, rank
from gradfiltering.proxy.gradients import GradientEngine
from gradfiltering.proxy.head import split_head
from gradfiltering.proxy.log import EpochLog, EpochRecorder
from gradfiltering.proxy.lora import Adapters
from gradfiltering.proxy.objective import Objective


def measure_all(
    engine: GradientEngine, adapters: Adapters, examples: Examples, batches: DataLoader, title: str
) -> EpochLog:
    """Loss and gradient norm of every example under every member, parameters frozen, dropout off.

    Args:
        engine: measures.
        adapters: the members.
        examples: all of them.
        batches: this process's share of them.
        title: what the progress bar says.

    Returns:
        The epoch's log, [M, N].
    """
    device = next(iter(adapters.values())).device
    members = next(iter(adapters.values())).shape[0]
    recorder = EpochRecorder(examples.example_ids, examples.response_tokens, members)
    for batch in track(batches, description=title, transient=True, disable=rank() > 0):
        there = batch.to(device)
        measured = engine.measure(adapters, there, want_gradient=False)
        recorder.add(batch.example_id.numpy(), measured.grad_norm.cpu().numpy(), measured.loss.cpu().numpy())
    return recorder.finish()


@torch.inference_mode()
def response_losses(
    model: torch.nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[int, float]:
    """Objective of each example under a plain model: example id -> loss in nats per response token.

    `batches` are this process's share; what comes back is of all processes.
    """
    model.to(device).eval()
    split = split_head(model)
    losses: dict[int, float] = {}
    for batch in batches:
        there = batch.to(device)
        loss = split.losses(objective, there.input_ids, there.labels)
        losses.update(zip(batch.example_id.tolist(), loss.float().cpu().tolist(), strict=True))
    return {example_id: loss for some in gather(losses) for example_id, loss in some.items()}
