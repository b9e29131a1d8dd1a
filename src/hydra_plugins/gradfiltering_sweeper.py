"""Hydra's basic sweeper, validating a sweep in few compositions; Hydra finds its plugins in `hydra_plugins`."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


class CoveringSweeper(BasicSweeper):
    """The basic sweeper, which composes enough jobs to see each override before any job starts, not all of them.

    Composing is a good part of a job that finds everything in the cache, and the launcher does it again. A mistake that
    only a combination of overrides makes shows when its job starts; what the jobs before it made is in the cache.
    """

    def validate_batch_is_legal(self, job_batch: Sequence[Sequence[str]]) -> None:
        """Composes the first job with each override.

        Raises:
            HydraException: one of them cannot be composed.
        """
        super().validate_batch_is_legal(covering(job_batch))


def covering(job_batch: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The jobs, in their order, that have an override which no job before them has."""
    seen_overrides: set[str] = set()
    covering_jobs = []
    for job_overrides in job_batch:
        if not seen_overrides.issuperset(job_overrides):
            seen_overrides.update(job_overrides)
            covering_jobs.append(job_overrides)
    return covering_jobs


@dataclass
class CoveringConf(BasicSweeperConf):
    """The basic sweeper's options."""

    _target_: str = "hydra_plugins.gradfiltering_sweeper.CoveringSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="covering", node=CoveringConf, provider="gradfiltering")
