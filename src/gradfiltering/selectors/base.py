"""What a selector is, how large a budget is, and the subset it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.export import write_rows
from gradfiltering.errors import UserError
from gradfiltering.evidence.base_model import Need
from gradfiltering.runs.cache import atomic_path
from gradfiltering.scorers.base import Evidence, Scores


@dataclass(frozen=True)
class Selection:
    """What a selector chose.

    Attributes:
        example_ids: chosen rows in ascending order.
        about: what is worth knowing about the choice, for `summary.json`.
        trace: columns of equal length, one row for each choice in the order of choosing, for `selection.parquet`.
        stopped: why fewer rows were chosen than asked for, where the selector itself ended the search.
    """

    example_ids: list[int]
    about: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, np.ndarray] = field(default_factory=dict)
    stopped: str | None = None

    def summary(self, options: Mapping[str, str], total: int, scores: Scores | None) -> dict[str, Any]:
        """The part of `summary.json` about the selection.

        Args:
            options: names of the chosen scorer and selector.
            total: all rows of the dataset.
            scores: None where no scorer was asked.
        """
        how = {"scorer": None if scores is None else options["scorer"], "selector": options["selector"]}
        return {**how, "fraction": len(self.example_ids) / total, "selected": len(self.example_ids), **self.about}


class Selector(Protocol):
    """Chooses rows.

    Attributes:
        needs: what it looks at: `scores`, or what a scorer may need.
    """

    needs: ClassVar[frozenset[Need]]

    def wanted(self, total: int) -> int:
        """How many of `total` rows are asked for.

        Raises:
            UserError: no row at all, or more rows than there are.
        """
        ...

    def select(self, evidence: Evidence, total: int, scores: Scores | None) -> Selection:
        """Chooses among the rows that can be scored.

        Args:
            evidence: about the N rows to choose from.
            total: all rows of the dataset, unscored ones included; budgets count these.
            scores: of these rows, or of most of them, for selectors that declare the need `scores`.
        """
        ...


@dataclass(frozen=True)
class Budget:
    """How many rows to choose: a fraction of all rows of this dataset, or a count.

    Attributes:
        fraction: share in (0, 1], or None.
        count: rows, or None.
    """

    fraction: float | None
    count: int | None

    def __post_init__(self):
        if (self.fraction is None) == (self.count is None):
            raise UserError(
                f"selector.fraction={self.fraction}, selector.count={self.count}: give exactly one of them, "
                "for example selector.fraction=0.1, or selector.fraction=null selector.count=500"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"selector.fraction={self.fraction}: give a fraction in (0, 1], such as 0.1 for 10 %")
        if self.count is not None and self.count < 1:
            raise UserError(f"selector.count={self.count}: give a positive number of rows")

    def wanted(self, total: int) -> int:
        """The budget in rows: round(fraction · total), or the count.

        Raises:
            UserError: the budget is no row at all, or more rows than the dataset has.
        """
        wanted = self.count if self.count is not None else round(self.fraction * total)  # type: ignore[operator]
        if wanted < 1:
            raise UserError(f"selector.fraction={self.fraction} of {total} rows is no row; give a larger fraction")
        if wanted > total:
            raise UserError(
                f"selector.count={self.count} is more than the dataset's {total} rows; give a smaller count"
            )
        return wanted

    def rows(self, total: int, available: int) -> int:
        """The budget in rows, at most what can be chosen from."""
        return min(self.wanted(total), available)


def shortfall(asked: int, choice: Selection) -> list[str]:
    """A warning where fewer rows were chosen than asked for."""
    chosen = len(choice.example_ids)
    if chosen >= asked:
        return []
    why = choice.stopped or (
        "no more of them can be scored (unscored.parquet says why); mend those rows, or ask for fewer with "
        "selector.fraction= or selector.count="
    )
    return [f"the selector was asked for {asked} rows and chose {chosen}: {why}"]


def write_subset(
    run_dir: Path,
    records: InstructionDataset,
    chosen: Sequence[int],
    scores: Scores | None,
    trace: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the chosen rows as they came in (`subset.jsonl` and the input's own file type) and `subset.parquet`.

    What a selector noted step by step, its trace, goes into `selection.parquet`.
    """
    write_rows(run_dir, records, chosen)
    ids = np.asarray(chosen, dtype=np.int64)
    values = np.full(len(ids), np.nan)
    if scores is not None:
        scored = np.isin(ids, scores.example_ids)
        values[scored] = scores.score[np.searchsorted(scores.example_ids, ids[scored])]
    with atomic_path(run_dir / "subset.parquet") as part:
        pq.write_table(pa.table({"example_id": ids, "score": values}), part)
    if trace:
        with atomic_path(run_dir / "selection.parquet") as part:
            pq.write_table(pa.table(dict(trace)), part)


def embeddings_of(evidence: Evidence) -> np.ndarray:
    """[N, D] float32."""
    found = evidence.observed.embeddings
    assert found is not None, "whoever reads the embeddings declares the need"
    return found


def inner_budget(name: str, inner: Selector, wanted: int, total: int) -> int:
    """`wanted`, the budget of a selector that leaves the last word to another one.

    Raises:
        UserError: that one has another budget.
    """
    own = inner.wanted(total)
    if own != wanted:
        raise UserError(
            f"selector.{name} is to choose {own} rows and the whole {wanted}; leave selector.{name}.fraction and "
            f"selector.{name}.count as they are and give selector.fraction or selector.count"
        )
    return wanted
