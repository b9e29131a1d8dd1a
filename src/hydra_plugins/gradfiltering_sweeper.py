"""Hydra's basic sweeper, validating a sweep in few compositions; Hydra finds its plugins in `hydra_plugins`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from gradfiltering.errors import UserError
from gradfiltering.masking import mask_secrets, remember_secrets

OWN_RUN_FOLDER = "${hydra:runtime.output_dir}"
JOB_NUMBERS = ("${hydra.job.num}", "${hydra.job.id}")


class CoveringSweeper(BasicSweeper):
    """The basic sweeper, which composes enough jobs to see each override before any job starts, not all of them.

    Composing is a good part of a job that finds everything in the cache, and the launcher does it again. A mistake that
    only a combination of overrides makes shows when its job starts; what the jobs before it made is in the cache.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep; `multirun.yaml` in its folder holds no secrets."""
        assert self.config is not None, "set by `setup`"
        self._whole_config = self.config
        plain_config = OmegaConf.to_container(self.config, resolve=False)
        remember_secrets(plain_config)
        masked_config = OmegaConf.create(mask_secrets(plain_config))
        masked_config.hydra.sweep.dir = self.config.hydra.sweep.dir
        self.config = masked_config
        return super().sweep(arguments)

    def validate_batch_is_legal(self, job_batch: Sequence[Sequence[str]]) -> None:
        """Compose the first job with each override, and before the first job see that each has its own folder.

        Raises:
            HydraException: one of them cannot be composed.
            UserError: two jobs would write into one folder.
        """
        composed_jobs = [self._compose(job_overrides) for job_overrides in covering(job_batch)]
        if self.batch_index == 1 and not all(map(has_own_folder, composed_jobs)):
            all_jobs = [job_overrides for batch in self.overrides or () for job_overrides in batch]
            refuse_shared_folders(all_jobs, [self._find_folder(*job) for job in enumerate(all_jobs)])

    def _compose(self, job_overrides: Sequence[str]) -> DictConfig:
        assert self.hydra_context is not None, "set by `setup`"
        return self.hydra_context.config_loader.load_sweep_config(self._whole_config, list(job_overrides))

    def _find_folder(self, job_number: int, job_overrides: Sequence[str]) -> str:
        """Return the run folder of a job, links followed."""
        job_config = self._compose(job_overrides)
        with open_dict(job_config):
            job_config.hydra.job.id = job_config.hydra.job.num = job_number
            job_folder = Path(job_config.hydra.sweep.dir) / str(job_config.hydra.sweep.subdir)
            job_config.hydra.runtime.output_dir = str(job_folder.absolute())
        with _hydra_state(job_config):
            return os.path.realpath(str(job_config.run_dir))


@contextmanager
def _hydra_state(job_config: DictConfig) -> Iterator[None]:
    """Let `${hydra:…}` refer to a job's configuration."""
    hydra_state = HydraConfig.instance()
    earlier_config = hydra_state.cfg
    hydra_state.set_config(job_config)
    try:
        yield
    finally:
        hydra_state.cfg = earlier_config


def has_own_folder(job_config: DictConfig) -> bool:
    """Return True for a job whose run folder is Hydra's, and that is named by the job's number."""
    raw_options: Any = OmegaConf.to_container(job_config, resolve=False)
    folder_name = str(raw_options["hydra"]["sweep"]["subdir"])
    names_job = any(job_number in folder_name for job_number in JOB_NUMBERS)
    return names_job and raw_options["run_dir"] == OWN_RUN_FOLDER


def refuse_shared_folders(jobs: Sequence[Sequence[str]], run_folders: Sequence[str]) -> None:
    """Refuse jobs that would overwrite each other's files.

    Raises:
        UserError: names two of the jobs, and their folder.
    """
    first_jobs: dict[str, int] = {}
    for job_number, run_folder in enumerate(run_folders):
        first_job = first_jobs.setdefault(run_folder, job_number)
        if first_job != job_number:
            raise UserError(
                f"jobs {first_job} ({' '.join(jobs[first_job])}) and {job_number} ({' '.join(jobs[job_number])}) of "
                f"this sweep would both write into {run_folder}. Leave out run_dir= and hydra.sweep.subdir=, so that "
                "each has a folder of its own below hydra.sweep.dir=, or name it by the job: "
                "run_dir='FOLDER/${hydra:job.num}'"
            )


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
