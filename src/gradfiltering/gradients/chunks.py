"""Cutting of a batch into chunks of like length, for as few padded tokens as pay."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from gradfiltering.data.batches import IGNORED, Batch, cut_cheapest

CHUNK_OVERHEAD = {"cpu": 128}  # padded tokens that take as long as one more chunk does
GPU_CHUNK_OVERHEAD = 16384  # an estimate; large, as whole batches have few shapes, see `gradients.body_graph`


@dataclass(frozen=True)
class Chunk:
    """Examples of some members that are computed at once.

    Attributes:
        first_member, end_member: the members.
        columns: [members, examples] where the examples stand in each member's batch; [1, examples] where members
            share them.
        width: tokens that their sequences are cut to.
    """

    first_member: int
    end_member: int
    columns: np.ndarray
    width: int

    @property
    def members(self) -> slice:
        """The members."""
        return slice(self.first_member, self.end_member)

    @property
    def shape(self) -> tuple[int, int]:
        """Members and examples."""
        return self.end_member - self.first_member, self.columns.shape[1]

    @property
    def padded_tokens(self) -> int:
        """Tokens of one sequence of every example, with padding."""
        member_count, example_count = self.shape
        return member_count * example_count * self.width

    def widen(self, most_tokens: int, chunk_tokens: int) -> "Chunk":
        """Round the width up, by a sixteenth or to a multiple of eight, so that chunks have few different shapes.

        Args:
            most_tokens: of a row, in the model.
            chunk_tokens: see `cut_chunks`; a chunk that would have more stays as it is.
        """
        step = max(8, 1 << max(0, self.width.bit_length() - 5))
        widened = replace(self, width=min(most_tokens, -(-self.width // step) * step))
        return widened if self.width < widened.width and widened.padded_tokens <= chunk_tokens else self


def cut_chunks(
    lengths: np.ndarray, stack_size: int, chunk_tokens: int, device_type: str, sequences: int = 1
) -> list[list[Chunk]]:
    """Cut a batch so that padding and the chunks' overheads come to least.

    Each member's examples are ordered by length first. Where members have rows of their own, going through them one
    member after the other is compared with as many at once as fit: the latter makes fewer chunks, the former less
    padding.

    Args:
        lengths: [M, B] tokens of each example's longest sequence; [1, B] where members share the examples.
        stack_size: M.
        chunk_tokens: members × examples × padded tokens at most (at least one example of one member is taken).
        device_type: of the device that computes.
        sequences: of an example.

    Returns:
        For each group of members, in order, its chunks.
    """
    overhead = CHUNK_OVERHEAD.get(device_type, GPU_CHUNK_OVERHEAD)
    columns = np.argsort(lengths, axis=1, kind="stable")  # [M or 1, B]
    sorted_lengths = np.take_along_axis(lengths, columns, axis=1)
    longest = max(1, int(lengths.max(initial=1))) * sequences
    most_members = min(stack_size, max(1, chunk_tokens // longest))
    plans = [
        _cut_groups(columns, sorted_lengths, stack_size, group_size, chunk_tokens, overhead, sequences)
        for group_size in ([most_members, 1] if len(lengths) > 1 and most_members > 1 else [most_members])
    ]
    plan = min(
        plans, key=lambda plan: sum(sequences * chunk.padded_tokens + overhead for group in plan for chunk in group)
    )
    if len(plan) == len(plan[0]) == 1:  # nothing is cut, so nothing need be reordered
        whole_batch = np.broadcast_to(np.arange(lengths.shape[1]), lengths.shape)
        plan = [[replace(plan[0][0], columns=whole_batch)]]
    return plan


def _cut_groups(
    columns: np.ndarray,
    sorted_lengths: np.ndarray,
    stack_size: int,
    group_size: int,
    chunk_tokens: int,
    overhead: int,
    sequences: int,
) -> list[list[Chunk]]:
    groups = []
    for first_member in range(0, stack_size, group_size):
        end_member = min(stack_size, first_member + group_size)
        member_slice = slice(first_member, end_member) if len(columns) > 1 else slice(None)
        widths = np.maximum(1, sorted_lengths[member_slice].max(0))  # [B], rising
        tokens_per_width = sequences * (end_member - first_member)
        ends = cut_cheapest(widths, chunk_tokens // tokens_per_width, max(1, overhead // tokens_per_width))
        starts = [0, *ends[:-1]]
        groups.append(
            [
                Chunk(first_member, end_member, columns[member_slice, start:end], int(widths[end - 1]))
                for start, end in zip(starts, ends, strict=True)
            ]
        )
    return groups


def take_chunk(batch: Batch, chunk: Chunk) -> Batch:
    """Take a chunk's examples from the batch, [B, T] or [M, B, T] tokens, cut to the chunk's width."""
    batch = replace(batch, lengths=None)  # the chunk's width says what they are for
    if is_in_order(chunk.columns) and chunk.columns.shape[1] == batch.example_id.shape[-1]:
        is_whole = batch.example_id.dim() == 1 or chunk.shape[0] == len(batch.example_id)
        return _cut_width(batch if is_whole else batch.map_tensors(lambda tensor: tensor[chunk.members]), chunk.width)
    columns = torch.from_numpy(chunk.columns)
    if batch.example_id.dim() == 1:
        examples = batch.map_tensors(lambda tensor: tensor[columns[0].to(tensor.device)])
    else:
        rows = torch.arange(chunk.first_member, chunk.end_member)[:, None]
        examples = batch.map_tensors(lambda tensor: tensor[rows.to(tensor.device), columns.to(tensor.device)])
    return _cut_width(examples, chunk.width)


def is_in_order(columns: np.ndarray) -> bool:
    """Return True where the columns of each row are 0, 1, 2 and so on."""
    return bool((columns == np.arange(columns.shape[-1])).all())


def _cut_width(batch: Batch, width: int) -> Batch:
    """Cut all sequences to a width, or pad them to it; no label is behind it, and what is padded is never seen."""
    padding = width - batch.input_ids.shape[-1]
    if padding == 0:
        return batch
    states = batch.prefix_states
    if padding > 0:
        return replace(
            batch,
            input_ids=F.pad(batch.input_ids, (0, padding)),
            labels=F.pad(batch.labels, (0, padding), value=IGNORED),
            prefix_states=None if states is None else F.pad(states, (0, 0, 0, padding)),
        )
    return replace(
        batch,
        input_ids=batch.input_ids[..., :width],
        labels=batch.labels[..., :width],
        prefix_states=None if states is None else states[..., :width, :],
    )


def example_lengths(batch: Batch) -> np.ndarray:
    """Return the tokens of each example's longest sequence, [1, B] or [M, B]; the padded ones where none are known."""
    if batch.lengths is not None:
        lengths = batch.lengths.numpy()
    else:
        lengths = np.full(tuple(batch.example_id.shape), batch.input_ids.shape[-1])
    return lengths[None] if lengths.ndim == 1 else lengths


def original_order(chunks: list[Chunk]) -> np.ndarray:
    """Return where each of the members' examples stands among those of the chunks put side by side, [M or 1, B]."""
    return np.argsort(np.concatenate([chunk.columns for chunk in chunks], axis=1), axis=1)
