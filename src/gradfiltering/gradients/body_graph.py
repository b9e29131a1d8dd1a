"""Forward and backward passes of a model's body, recorded as CUDA graphs and replayed for batches of the same shape.

A pass of a stack of members is some two thousand short operations on a GPU, and launching them one by one takes the CPU
longer than the GPU needs to compute them. A CUDA graph launches all of them at once. It repeats the same operations on
the same addresses, so that inputs are copied to where it reads them and results from where it writes them.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gradfiltering.gradients.statistics import SQUARED_NORM, GradientAccumulator, GradientMeasurement
from gradfiltering.models.lora import Adapters

MOST_GRAPHS = 96  # shapes recorded; the others are computed operation by operation

logger = logging.getLogger(__name__)

RunBody = Callable[[Tensor, Tensor | None, GradientAccumulator], Tensor]
"""Computes [rows, T, D] hidden states from token ids and perhaps prefix states; a backward pass reports to the
accumulator."""


def can_record(device: torch.device) -> bool:
    """Return True for a device whose passes can be recorded."""
    return device.type == "cuda"


@dataclass(frozen=True)
class BodyShape:
    """Shape of a pass: one that was recorded is used again where all of it is equal.

    Attributes:
        rows: of the batch; an example may have several.
        tokens: that each is padded to.
        hidden_width: D of the hidden states.
        members: M.
        examples: M·B.
        summed_parameters: numbers of the gradient of one member that are summed over examples; 0 for none.
        has_norms: whether gradients' norms are computed.
        has_prefix: whether the pass goes on from what the layers without adapters hand on.
    """

    rows: int
    tokens: int
    hidden_width: int
    members: int
    examples: int
    summed_parameters: int
    has_norms: bool
    has_prefix: bool


class RecordedBody:
    """One shape's passes; takes the place of `SplitModel.body`.

    Args:
        shape: of the batches.
        memory: that recorded passes share.
        run_body: see `RunBody`.

    Raises:
        RuntimeError: an operation cannot be recorded, or the pass is not of this shape.
    """

    def __init__(self, shape: BodyShape, memory: "GraphMemory", run_body: RunBody):
        self.shape = shape
        state_shape = (shape.rows, shape.tokens, shape.hidden_width)
        wide_dtype = torch.promote_types(memory.dtype, torch.float32)
        # All that stays is reserved before anything is recorded, as a graph's own memory belongs to the next one, too.
        self._input_ids = memory.reserve("input_ids", (shape.rows, shape.tokens), torch.int64)
        self._prefix_states = memory.reserve("prefix_states", state_shape, memory.dtype) if shape.has_prefix else None
        self._hidden_states = memory.reserve("hidden_states", state_shape, memory.dtype)
        self._hidden_gradient = memory.reserve("hidden_gradient", state_shape, memory.dtype)
        self._squares = memory.reserve("squares", (shape.members, shape.examples // shape.members), wide_dtype)
        self._flat_sums = memory.reserve("gradient_sums", (shape.members * shape.summed_parameters,), wide_dtype)
        self._sum_shapes: dict[str, torch.Size] = {}
        self._record(memory, run_body)

    def _record(self, memory: "GraphMemory", run_body: RunBody) -> None:
        self._forward_graph, self._backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        accumulator = GradientAccumulator(self.shape.summed_parameters > 0, {})
        if not self.shape.has_norms:
            accumulator.statistics = {}
        with torch.enable_grad():
            with memory.recording(self._forward_graph):
                hidden_states = self._run_forward(run_body, accumulator)
            with memory.recording(self._backward_graph):
                self._run_backward(hidden_states, accumulator)

    def _run_forward(self, run_body: RunBody, accumulator: GradientAccumulator) -> Tensor:
        hidden_states = run_body(self._input_ids, self._prefix_states, accumulator)
        if hidden_states.dtype != self._hidden_states.dtype:
            raise RuntimeError(f"hidden states of {hidden_states.dtype} in a model of {self._hidden_states.dtype}")
        self._hidden_states.copy_(hidden_states.detach())
        return hidden_states

    def _run_backward(self, hidden_states: Tensor, accumulator: GradientAccumulator) -> None:
        torch.autograd.backward([hidden_states], [self._hidden_gradient])
        if self.shape.has_norms:
            self._squares.copy_(accumulator.statistic_sums[SQUARED_NORM])
        if sum(gradient.numel() for gradient in accumulator.gradient_sums.values()) != len(self._flat_sums):
            raise RuntimeError("there are adapters that take no part in the pass")
        if accumulator.gradient_sums:
            torch.cat([gradient.flatten() for gradient in accumulator.gradient_sums.values()], out=self._flat_sums)
        self._sum_shapes = {name: gradient.shape for name, gradient in accumulator.gradient_sums.items()}

    def set_prefix_states(self, prefix_states: Tensor) -> None:
        """Copy the states that the next pass goes on from, [..., T, D]."""
        assert self._prefix_states is not None
        self._prefix_states.copy_(prefix_states.view_as(self._prefix_states))

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Compute the last hidden states of [rows, T] token ids, valid until the next pass of any shape."""
        anchor = torch.empty((), device=input_ids.device, requires_grad=True)  # so that a backward pass comes here
        return SimpleNamespace(last_hidden_state=_replay(anchor, input_ids, self))

    def result(self, loss: Tensor) -> GradientMeasurement:
        """Return what the last backward pass measured, in memory of its own; `loss` is [M, B]."""
        gradient_sums: Adapters | None = None
        if self.shape.summed_parameters:
            sizes = [shape.numel() for shape in self._sum_shapes.values()]
            pieces = self._flat_sums.clone().split(sizes)
            gradient_sums = {
                name: piece.view(shape) for (name, shape), piece in zip(self._sum_shapes.items(), pieces, strict=True)
            }
        return GradientMeasurement(loss, self._squares.sqrt(), gradient_sums)

    def forward_pass(self, input_ids: Tensor) -> Tensor:
        """Replay the forward pass; returns the [rows, T, D] that it writes to."""
        self._input_ids.copy_(input_ids)
        self._forward_graph.replay()
        return self._hidden_states

    def backward_pass(self, hidden_gradient: Tensor) -> None:
        """Replay the backward pass of the last forward pass."""
        self._hidden_gradient.copy_(hidden_gradient)
        self._backward_graph.replay()


class _Replay(torch.autograd.Function):
    """Runs a recorded pass."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, input_ids: Tensor, recorded_body: RecordedBody) -> Tensor:
        """[rows, T] -> [rows, T, D]."""
        ctx.recorded_body = recorded_body
        return recorded_body.forward_pass(input_ids).detach()

    @staticmethod
    def backward(ctx: Any, *hidden_gradients: Tensor) -> Any:
        """[rows, T, D] -> nothing; the gradients are in the recorded body."""
        ctx.recorded_body.backward_pass(hidden_gradients[0])
        return None, None, None


_replay: Callable[[Tensor, Tensor, RecordedBody], Tensor] = _Replay.apply


def return_unused_memory(device: torch.device) -> None:
    """Give a GPU's memory back that earlier work left, where it is more than is free: graphs cannot use it."""
    unused_bytes = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if unused_bytes > torch.cuda.mem_get_info(device)[0]:
        torch.cuda.empty_cache()


@dataclass
class GraphMemory:
    """Memory that recorded passes have in common, as no two of them are ever under way at once.

    Attributes:
        device: a GPU.
        dtype: of the base model.
        pool: of what passes hold between their operations.
        stream: that passes are recorded on.
    """

    device: torch.device
    dtype: torch.dtype
    pool: Any = field(default_factory=lambda: torch.cuda.graph_pool_handle())
    stream: Any = field(default_factory=lambda: torch.cuda.Stream())
    _buffers: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    @contextmanager
    def recording(self, graph: torch.cuda.CUDAGraph) -> Iterator[None]:
        """Record what the block does.

        `torch.cuda.graph` does the same, and each time collects garbage and gives all free memory back, which takes
        longer than recording.
        """
        present_stream = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present_stream)
        with torch.cuda.stream(self.stream):
            # Other threads may go on preparing batches, which allocates memory that a GPU reads.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):  # recording has failed before
                    graph.capture_end()
                raise
            graph.capture_end()
        present_stream.wait_stream(self.stream)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a part of the buffer of that name, which passes of all shapes share; filled with zeros at first."""
        count = torch.Size(shape).numel()
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < count:
            grown_count = max(count, 0 if buffer is None else 2 * len(buffer))
            buffer = torch.zeros(grown_count, dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer  # graphs recorded earlier go on with the one that they know
        return buffer[:count].view(shape)


class RecordedBodies:
    """The recorded passes of an engine; a shape is recorded when it comes for the second time.

    Attributes:
        refusal: why nothing is recorded any more; empty where passes are.
    """

    def __init__(self) -> None:
        self._bodies: dict[BodyShape, RecordedBody | None] = {}
        self._memory: GraphMemory | None = None
        self.refusal = ""

    def find(
        self,
        shape: BodyShape,
        device: torch.device,
        dtype: torch.dtype,
        run_body: RunBody,
    ) -> RecordedBody | None:
        """Return a recorded pass of this shape; None for a shape that is new, or cannot be recorded.

        Args:
            shape: of the batch.
            device: a GPU.
            dtype: of the base model.
            run_body: see `RecordedBody`.
        """
        if self.refusal:
            return None
        if shape not in self._bodies:  # its first pass also prepares what cannot be prepared while recording
            if len(self._bodies) < MOST_GRAPHS:
                self._bodies[shape] = None
            return None
        if self._bodies[shape] is None:
            if self._memory is None:
                self._memory = GraphMemory(device, dtype)
            try:
                return_unused_memory(device)
                self._bodies[shape] = RecordedBody(shape, self._memory, run_body)
            except (RuntimeError, KeyError) as error:  # out of memory among them: single operations had enough
                self.refusal = (str(error) or type(error).__name__).splitlines()[0][:200]
                logger.warning("computing operation by operation, as passes cannot be recorded: %s", self.refusal)
                self.clear()
                return None
        return self._bodies[shape]

    def clear(self) -> None:
        """Forget all passes and give their memory back."""
        self._bodies.clear()
        self._memory = None
