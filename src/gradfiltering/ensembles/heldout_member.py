"""One more member, trained on a part of the rows, from whose loss on the rest the proxy's held-out loss comes."""

from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Gt, Le

from gradfiltering.data.examples import Examples, number_equal_rows
from gradfiltering.errors import UserError
from gradfiltering.options import options
from gradfiltering.seeding import derive_seed, numpy_rng
from gradfiltering.statistics.rounding import share_of_count

HELDOUT_MEMBER = "held-out member"  # its stream of random numbers
MIN_HELDOUT_ROWS = 8  # the mean loss of fewer says little
MIN_TRAINING_ROWS = 24


class HeldoutSplit(NamedTuple):
    """The rows of the extra member.

    Attributes:
        training: it is trained on.
        heldout: it never sees.
    """

    training: Examples
    heldout: Examples


@options
class HeldoutMember:
    """The extra member, whose gradients nothing reads: it shows whether the proxy learns what it was not shown.

    A member of the ensemble sees all rows, so its own loss falls even where it learns the rows by heart. The extra
    member starts from a seed of its own and is trained with the ensemble's settings, and kept in the cache like any
    other.

    Attributes:
        train: `auto` trains it where the dataset sets no rows aside and has rows enough; True also beside rows set
            aside, and refuses a dataset with too few; False never.
        share: of the rows that it never sees; at least eight.
    """

    train: Literal["auto"] | bool = "auto"
    share: Annotated[float, Gt(0), Le(0.5)] = 0.1

    def count_heldout_rows(self, example_count: int, has_heldout_rows: bool) -> int:
        """Return the number of rows that the extra member never sees, 0 where there is no such member.

        It is trained on the others, to the same snapshots as a member of the ensemble, and measured on these after
        each snapshot: so much more work than the ensemble alone.

        Args:
            example_count: rows that can be scored.
            has_heldout_rows: whether the dataset sets rows aside, of which the ensemble's own held-out loss comes.
        """
        if self.train is False or (self.train == "auto" and has_heldout_rows):
            return 0
        heldout_count = max(MIN_HELDOUT_ROWS, share_of_count(self.share, example_count))
        return heldout_count if example_count - heldout_count >= MIN_TRAINING_ROWS else 0

    def split(self, examples: Examples, has_heldout_rows: bool, seed: int) -> HeldoutSplit | None:
        """Split the examples of a run, exact duplicates together; None where no extra member is trained.

        Args:
            examples: that can be scored.
            has_heldout_rows: see `count_heldout_rows`.
            seed: of the run.

        Raises:
            UserError: the member was asked for, and there are too few rows.
        """
        heldout_count = self.count_heldout_rows(len(examples), has_heldout_rows)
        is_heldout = _draw_rows(examples, heldout_count, seed)
        if is_heldout.sum() < MIN_HELDOUT_ROWS:
            if self.train is True:
                raise UserError(
                    f"{len(examples)} rows are too few for a member that is trained on {MIN_TRAINING_ROWS} of them or "
                    f"more and measured on {MIN_HELDOUT_ROWS} others or more, exact copies on one side; give more rows",
                    owner=type(self),
                    arguments=("train", "share"),
                )
            return None
        training_ids, heldout_ids = examples.example_ids[~is_heldout], examples.example_ids[is_heldout]
        return HeldoutSplit(examples.select(training_ids), examples.select(heldout_ids))


def heldout_member_seed(run_seed: int) -> int:
    """Return the seed of the extra member: no member of any ensemble shares its start, its order or its cache."""
    return derive_seed(run_seed, HELDOUT_MEMBER)


def _draw_rows(examples: Examples, heldout_count: int, seed: int) -> np.ndarray:
    """Draw up to so many rows, all those of equal tokens or none of them. [N] bool."""
    if not heldout_count:
        return np.zeros(len(examples), dtype=bool)
    first_rows = number_equal_rows(examples)  # [N]
    groups, group_sizes = np.unique(first_rows, return_counts=True)  # groups of equal rows, by their first row
    is_drawn = np.zeros(len(groups), dtype=bool)
    drawn_count = 0
    for group_index in numpy_rng(seed, HELDOUT_MEMBER, "rows").permutation(len(groups)):
        if drawn_count == heldout_count:
            break
        if drawn_count + group_sizes[group_index] <= heldout_count:
            is_drawn[group_index] = True
            drawn_count += int(group_sizes[group_index])
    drawn_rows: np.ndarray = is_drawn[np.searchsorted(groups, first_rows)]
    return drawn_rows
