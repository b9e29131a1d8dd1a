"""Requests for measurements, and the plain NumPy results that scorers and selectors read.

A scorer or selector lists its requests. A run measures each of them once for all scorable rows and
hands the results over as `Evidence`. This module needs NumPy alone: no torch, files or options.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np

Measured = TypeVar("Measured")
Item = TypeVar("Item")
SnapshotUnit = Literal["epoch", "update"]  # what snapshots are counted in


class Request(Generic[Measured]):
    """Description of a measurement of all scorable rows; equal requests are measured once.

    A new kind of evidence is a frozen dataclass derived from `Request[Result]`, and a measurer for
    it. Rows of the result are in the order of `Evidence.example_ids`. A request that needs members of
    the ensemble says how many by `count_members`.
    """

    def count_members(self, ensemble_size: int) -> int:
        """Return how many members of an ensemble of so many the measurement needs, counted from the first."""
        return 0

    @property
    def reads_whole_ensemble(self) -> bool:
        """True where the result changes with the number of members."""
        return self.count_members(2) > self.count_members(1)

    def select_rows(self, result: Measured, row_indices: np.ndarray) -> Measured:
        """Return the part of a result that is about some rows.

        Args:
            result: as measured; an array whose first axis counts rows, unless overridden.
            row_indices: [n] int64 positions of the rows.
        """
        rows: Measured = result[row_indices]  # type: ignore[index]  # an array; other results override this method
        return rows


@dataclass(frozen=True)
class EpochLog:
    """Measurements of N examples under M members at one epoch.

    Attributes:
        example_ids: [N] int64, ascending.
        grad_norm: [M, N] float32 when read from disk, float64 while it is being measured; NaN where losses alone were
            measured.
        loss: [M, N] likewise, nats per response token.
        response_tokens: [N] int32.
    """

    example_ids: np.ndarray
    grad_norm: np.ndarray
    loss: np.ndarray
    response_tokens: np.ndarray

    @property
    def has_norms(self) -> bool:
        """True where gradient norms were measured, not losses alone."""
        return not np.isnan(self.grad_norm).any()

    def select_rows(self, row_indices: np.ndarray) -> "EpochLog":
        """Return the measurements of some rows, [n] int64 positions."""
        return EpochLog(
            self.example_ids[row_indices],
            self.grad_norm[:, row_indices],
            self.loss[:, row_indices],
            self.response_tokens[row_indices],
        )

    def select_members(self, member_indices: np.ndarray) -> "EpochLog":
        """Return the measurements under some members, [m] int64 positions that may repeat."""
        norms, losses = self.grad_norm[member_indices], self.loss[member_indices]
        return replace(self, grad_norm=norms, loss=losses)


@dataclass(frozen=True)
class GradientLogPair:
    """Gradient log at the two snapshots that are compared.

    Attributes:
        early: snapshot s.
        late: snapshot t.
    """

    early: EpochLog
    late: EpochLog


@dataclass(frozen=True)
class GradientLog(Request[GradientLogPair]):
    """Gradient norms and losses under every member, at the early and the late snapshot."""

    def count_members(self, ensemble_size: int) -> int:
        """Return the size of the ensemble."""
        return ensemble_size

    def select_rows(self, result: GradientLogPair, row_indices: np.ndarray) -> GradientLogPair:
        """Return both snapshots' measurements of some rows."""
        early, late = result.early.select_rows(row_indices), result.late.select_rows(row_indices)
        return GradientLogPair(early, late)


@dataclass(frozen=True)
class Projections(Request[np.ndarray]):
    """Random projections of the gradients at the late snapshot, [M, N, K] float32.

    Attributes:
        members: how many members of the ensemble, counted from the first; None for all.
    """

    members: int | None = None

    def count_members(self, ensemble_size: int) -> int:
        """Return how many members are projected."""
        return ensemble_size if self.members is None else self.members

    def select_rows(self, result: np.ndarray, row_indices: np.ndarray) -> np.ndarray:
        """Return the projections of some rows, [M, n, K]."""
        return result[:, row_indices]


@dataclass(frozen=True)
class LossMeasurement:
    """Losses under the base model without adapters, in nats per response token.

    Attributes:
        row_losses: [N] float64.
        heldout_loss: mean over held-out rows, None where no row is held out.
    """

    row_losses: np.ndarray
    heldout_loss: float | None


@dataclass(frozen=True)
class BaseModelLosses(Request[LossMeasurement]):
    """Mean loss of each response given its prompt, under the base model without adapters."""

    def select_rows(self, result: LossMeasurement, row_indices: np.ndarray) -> LossMeasurement:
        """Return the losses of some rows; the held-out loss stays."""
        return replace(result, row_losses=result.row_losses[row_indices])


@dataclass(frozen=True)
class ErrorNorms(Request[np.ndarray]):
    """Mean over response tokens of ‖p − onehot(token)‖₂ under the base model, [N] float64 (EL2N)."""


@dataclass(frozen=True)
class Embeddings(Request[np.ndarray]):
    """Vectors that lie close to each other for similar rows, [N, D] float32."""


@dataclass(frozen=True)
class ResponseLossPair:
    """Two losses of each response under the base model, in nats per token.

    Attributes:
        given_prompt: [N] float64, mean over the response's tokens.
        alone: [N] float64, mean over all but the first of them, which nothing precedes.
        missing_reasons: row index -> why the row has no losses (they are NaN).
    """

    given_prompt: np.ndarray
    alone: np.ndarray
    missing_reasons: dict[int, str]

    @property
    def measured_rows(self) -> np.ndarray:
        """Indices of the rows that have both losses, ascending."""
        return np.setdiff1d(np.arange(len(self.alone)), list(self.missing_reasons))

    def list_missing(self, example_ids: np.ndarray) -> list[tuple[int, str]]:
        """List id and reason of each row without losses; `example_ids` [N] are those of all rows."""
        return [(int(example_ids[row]), reason) for row, reason in sorted(self.missing_reasons.items())]

    def describe_missing(self) -> str:
        """Name the reasons why rows have no losses, each once."""
        return ", ".join(sorted(set(self.missing_reasons.values())))


@dataclass(frozen=True)
class ResponseLosses(Request[ResponseLossPair]):
    """Losses of each response given its prompt, and by itself, under the base model.

    Attributes:
        template: name of the prompt template, whatever the run trains with.
        max_tokens: longest input; the end is cut off.
    """

    template: str
    max_tokens: int

    def select_rows(self, result: ResponseLossPair, row_indices: np.ndarray) -> ResponseLossPair:
        """Return both losses of some rows, and the reasons of those without."""
        reasons = result.missing_reasons
        return ResponseLossPair(
            result.given_prompt[row_indices],
            result.alone[row_indices],
            {new: reasons[row] for new, row in enumerate(row_indices.tolist()) if row in reasons},
        )


@dataclass(frozen=True)
class CheckpointGradients:
    """Projected gradients at C checkpoints of M members, all by one projection.

    Attributes:
        row_directions: [C][M] -> [N, K] float32, the directions Adam would take for each row.
        validation_gradients: [C][M] -> [V, K] float32, plain gradients of the validation rows.
        validation_tasks: [V] name of each validation row's task.
        learning_rates: [C] mean learning rate of the epoch that ends at the checkpoint.
        validation_losses: checkpoint -> mean over members and rows, nats per response token.
    """

    row_directions: list[list[np.ndarray]]
    validation_gradients: list[list[np.ndarray]]
    validation_tasks: np.ndarray
    learning_rates: list[float]
    validation_losses: dict[int, float]


@dataclass(frozen=True)
class TaskGradients(Request[CheckpointGradients]):
    """Gradients at checkpoints, of the rows as Adam applies them and of validation rows plainly.

    Attributes:
        checkpoints: epochs, ascending.
        members: how many members of the ensemble, counted from the first.
        validation: file of validation rows, None for the held-out ones.
        task: field that names a validation row's task; `auto` for `source` where rows have it,
            None for one task.
    """

    checkpoints: tuple[int, ...]
    members: int
    validation: str | None
    task: str | None

    def count_members(self, ensemble_size: int) -> int:
        """Return how many members have gradients taken at the checkpoints."""
        return self.members

    def select_rows(self, result: CheckpointGradients, row_indices: np.ndarray) -> CheckpointGradients:
        """Return the directions of some rows; the validation gradients stay."""
        directions = [
            [member_directions[row_indices] for member_directions in checkpoint] for checkpoint in result.row_directions
        ]
        return replace(result, row_directions=directions)


@dataclass(frozen=True)
class SelectedItems(Sequence[Item]):
    """View of some items of a sequence that may lie on disk.

    Attributes:
        items: all of them.
        item_indices: [n] int64 positions of those in the view.
    """

    items: Sequence[Item]
    item_indices: np.ndarray

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> "SelectedItems[Item]": ...

    def __getitem__(self, index: int | slice) -> "Item | SelectedItems[Item]":
        """Read an item, or narrow the view."""
        if isinstance(index, slice):
            return SelectedItems(self.items, self.item_indices[index])
        return self.items[int(self.item_indices[index])]

    def __len__(self) -> int:
        return len(self.item_indices)


@dataclass(frozen=True)
class RowTokens(Request[Sequence[Sequence[int]]]):
    """Text of each row as token ids, prompt and response; read from disk one row at a time."""

    def select_rows(self, result: Sequence[Sequence[int]], row_indices: np.ndarray) -> Sequence[Sequence[int]]:
        """Return a view of some rows' token ids."""
        return SelectedItems(result, row_indices)


@dataclass(frozen=True)
class FileScores(Request[np.ndarray]):
    """Scores that a file gives to rows, [N] float64, NaN for rows that it does not list.

    Attributes:
        path: of the file.
        column: of the scores.
    """

    path: str
    column: str


@dataclass(frozen=True)
class Evidence:
    """Everything that a scorer or selector may look at; planted defects are not part of it.

    Attributes:
        example_ids: [N] int64, ascending: the rows that can be scored.
        seed: seed of the run.
        response_tokens: [N] int32.
        token_counts: [N] int32, prompt and response.
        sources: [N] name of the source of each row, None where rows do not name any.
        results: request -> its result, about the rows that were measured.
        row_indices: [N] int64 positions of these rows among the measured ones, None for all.
    """

    example_ids: np.ndarray
    seed: int
    response_tokens: np.ndarray
    token_counts: np.ndarray
    sources: np.ndarray | None = None
    results: Mapping[Request[Any], Any] = field(default_factory=dict)
    row_indices: np.ndarray | None = None

    def get(self, request: Request[Measured]) -> Measured:
        """Return the result of a request.

        Raises:
            LookupError: the run did not measure it.
        """
        if request not in self.results:
            raise LookupError(
                f"{request} was not measured; a scorer or selector that reads it must list it in `requests`"
            )
        result: Measured = self.results[request]
        return result if self.row_indices is None else request.select_rows(result, self.row_indices)

    def add_results(self, results: Mapping[Request[Any], Any]) -> "Evidence":
        """Return the evidence with more results, which replace those of equal requests."""
        return replace(self, results={**self.results, **results})

    def select_rows(self, example_ids: Sequence[int] | np.ndarray) -> "Evidence":
        """Return the evidence about some rows, for a selector that chooses among them."""
        selected_ids = np.sort(np.asarray(example_ids, dtype=np.int64))
        indices = np.searchsorted(self.example_ids, selected_ids)
        return replace(
            self,
            example_ids=selected_ids,
            response_tokens=self.response_tokens[indices],
            token_counts=self.token_counts[indices],
            sources=None if self.sources is None else self.sources[indices],
            row_indices=indices if self.row_indices is None else self.row_indices[indices],
        )
