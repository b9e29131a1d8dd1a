"""The request for a plan: the measurements of a run, its rows and models, and its target."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradfiltering.ensembles.heldout_member import HeldoutMember
from gradfiltering.evidence.context import MeasurementContext
from gradfiltering.planning.target_work import PlannedTarget
from gradfiltering.requests import Request


@dataclass(frozen=True)
class PlanRequest:
    """Everything that a plan is made of.

    Attributes:
        requests: measurements that the run makes.
        context: model, rows and settings that they are made with.
        first_members: members where their number is searched for.
        total_rows: all rows of the pool, for budgets.
        target: the target; None where the run ends before, or where nothing is known of it.
        notes: stage -> what is not counted.
        heldout_member: the extra member of the held-out loss; None for none.
        requests_under_ifd: measurements that the run would make were its rows scored by IFD, without adapters; None
            where that is no change to propose.
    """

    requests: frozenset[Request[Any]]
    context: MeasurementContext
    first_members: int
    total_rows: int
    target: PlannedTarget | None
    notes: Mapping[str, Sequence[str]]
    heldout_member: HeldoutMember | None = None
    requests_under_ifd: frozenset[Request[Any]] | None = None
