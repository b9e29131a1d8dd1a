"""Options of the plan."""

from gradfiltering.options import PositiveFloat, options


@options
class PlanSettings:
    """Use of the plan.

    Attributes:
        only: print the plan and end.
        minutes: time that the run may take; rows are drawn from the pool so that it does. None for all rows.
        fresh: measure this machine's speed anew, where the cache keeps what an earlier run measured.
    """

    only: bool = False
    minutes: PositiveFloat | None = None
    fresh: bool = False
