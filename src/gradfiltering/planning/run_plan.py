"""The plan of a run as plain numbers: its stages, and for each the work, time, memory and disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gradfiltering.planning.operations import TokenCounts

FIXED = "fixed"  # kind of work whose seconds depend on no operations
ANSWERS = "answers"  # kind of work that rank zero does while the others wait


def sum_known(seconds: Sequence[float | None]) -> float | None:
    """Add up times; None where one of them is not known."""
    known_seconds = [value for value in seconds if value is not None]
    return sum(known_seconds) if len(known_seconds) == len(seconds) else None


@dataclass(frozen=True)
class PlannedWork:
    """A piece of work of a stage.

    Attributes:
        stage: that it belongs to.
        description: in words.
        counts: rows and tokens.
        all_operations: floating-point operations, were nothing in the cache.
        kind: of work, by which it is timed: `training`, `gradients`, `losses`, `tuning` or `answers`; or
            `fixed`, where the seconds are known and there are no operations.
        reused: the cache has the result.
        is_per_row: grows with the rows of the pool.
        seconds: estimate; 0 where the cache has the result, None where nothing was timed.
        estimated_from: where the estimate is from when it is not from the model itself; empty else.
        stored_bytes: that the cache keeps of it, logs and losses left out.
        device_bytes: that the memory of a GPU holds of it until all rows are measured.
        stored_members: states of members that are written, one for each member and snapshot.
        step_rows: rows of one step that processes share out; 0 where they share out whole batches.
        exchanged_bytes: of the gradients that processes add up at each step; 0 where there are none.
    """

    stage: str
    description: str
    counts: TokenCounts
    all_operations: int
    kind: str
    reused: bool = False
    is_per_row: bool = True
    seconds: float | None = None
    estimated_from: str = ""
    stored_bytes: int = 0
    device_bytes: int = 0
    stored_members: int = 0
    step_rows: int = 0
    exchanged_bytes: int = 0

    @property
    def operations(self) -> int:
        """Floating-point operations that are due: 0 where the cache has the result."""
        return 0 if self.reused else self.all_operations


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the run.

    Attributes:
        name: of the stage.
        work: its pieces.
        peak_bytes: memory of the process, or of the GPU, at its peak.
        disk_bytes: that the cache grows by; the run folder links to it.
        notes: what is not counted, and assumptions.
    """

    name: str
    work: Sequence[PlannedWork] = ()
    peak_bytes: int = 0
    disk_bytes: int = 0
    notes: Sequence[str] = ()

    @property
    def operations(self) -> int:
        """Of all its work."""
        return sum(piece.operations for piece in self.work)

    @property
    def seconds(self) -> float | None:
        """Of all its work; None where nothing was timed."""
        return sum_known([piece.seconds for piece in self.work])

    def to_json(self) -> dict[str, Any]:
        """Return the stage's part of `summary.json`."""
        return {
            "name": self.name,
            "operations": self.operations,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "work": [{**asdict(piece), "operations": piece.operations} for piece in self.work],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Saving:
    """A change to the run, and the time that it would save.

    Attributes:
        change: `ifd`, `online`, `upper_layers` or `few_updates`.
        values: numbers that the change is made with.
        seconds: that the run would be shorter by.
    """

    change: str
    values: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class RunPlan:
    """The plan of a run, stage by stage.

    Attributes:
        stages: with work that was planned, in their order.
        rows, pool_rows: rows that are taken, and those that can be scored in all.
        members: of the ensemble, 0 where none is trained.
        parameters: of the proxy in matrix products.
        calibration_seconds: time that measuring speeds took; 0 where none was measured, or all were in the cache.
        measured_at: when the oldest speed was measured that an earlier run left in the cache, in seconds since 1970;
            None where all of them are new.
        minutes: the time that the rows were cut to; None for all rows.
        seed: of the draw.
        device: in words.
        savings: changes that would make a long run shorter.
        fleet: the run's cost on a fleet, as `FleetCost.to_json` gives it; None where no fleet is planned for.
    """

    stages: Sequence[PlannedStage]
    rows: int
    pool_rows: int
    members: int
    parameters: int
    calibration_seconds: float = 0.0
    measured_at: float | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "cpu"
    savings: Sequence[Saving] = ()
    fleet: Mapping[str, Any] | None = None

    @property
    def operations(self) -> int:
        """Of all stages."""
        return sum(stage.operations for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages; None where one was not timed."""
        return sum_known([stage.seconds for stage in self.stages])

    @property
    def planned_seconds(self) -> dict[str, float]:
        """Stage -> seconds, of the stages that were timed."""
        return {stage.name: stage.seconds for stage in self.stages if stage.seconds is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the plan as `summary.json` holds it."""
        return {
            "rows": self.rows,
            "pool_rows": self.pool_rows,
            "members": self.members,
            "parameters": self.parameters,
            "operations": self.operations,
            "seconds": self.seconds,
            "peak_bytes": max((stage.peak_bytes for stage in self.stages), default=0),
            "disk_bytes": sum(stage.disk_bytes for stage in self.stages),
            "calibration_seconds": round(self.calibration_seconds, 3),
            "measured_at": self.measured_at,
            "minutes": self.minutes,
            "seed": self.seed,
            "device": self.device,
            "savings": [asdict(saving) for saving in self.savings],
            "fleet": self.fleet,
            "stages": [stage.to_json() for stage in self.stages],
        }
