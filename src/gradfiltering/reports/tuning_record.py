"""Tuning apart from reporting: what was tried to find a method's setting, and whether it is reported elsewhere.

A tuning sweep leaves `tuning.json`: for each method the settings that were tried, their seeds and held-out losses. Runs
that name its folder (`report.tuning`) refuse seeds and rows of the tuning, and their tables say in words what else
makes a comparison unfair: unequal numbers of settings tried, a setting that was not tried, or was not the best.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.reports.sweep_jobs import SweepJob, option_name, read_jobs
from gradfiltering.runs.files import hash_key, write_json

TUNING_FILE = "tuning.json"
# Parts of the configuration that make up a method's setting, and options in them that do not count as tuned.
SETTING_PARTS = ("scorer", "selector", "ensemble", "epochs", "adaptive", "projection", "embeddings", "proxy", "target")
OPTIONS_NOT_TUNED = ("target.max_new_tokens",)
BUDGET_PATTERN = re.compile(r"selector\.((second|inner)\.)*(fraction|count)")  # a first cut's share is a setting
DATASET_OPTIONS = ("name", "config", "split")  # that say which rows of the hub a data source reads
GENERATED_ROWS = ("TaskSource", "CurriculumSource")  # rows that each seed generates anew
METHODS_WITHOUT_SETTINGS = ("random", "selector random", "selector full")
OPTIONS_NOT_LISTED = ("seed", "until", "run_dir", "hydra", "report", "logger", "progress", "debug", "cache", "data")


@dataclass(frozen=True)
class TriedSetting:
    """A setting of a method that was tried.

    Attributes:
        digest: of all options that make it up.
        options: the overrides it was given by, in words.
        seeds: it was tried with, ascending.
        heldout_loss: mean over the seeds, nats per token; None where a seed has none.
    """

    digest: str
    options: str
    seeds: tuple[int, ...]
    heldout_loss: float | None


@dataclass(frozen=True)
class TuningRecord:
    """Everything that was tried in one or more tuning sweeps.

    Attributes:
        seeds: of all runs.
        data: the options of their data, each once.
        tried: method -> its settings.
    """

    seeds: frozenset[int]
    data: Sequence[Mapping[str, Any]]
    tried: Mapping[str, Sequence[TriedSetting]]

    def best_setting(self, method: str) -> TriedSetting | None:
        """Return the setting of a method with the lowest held-out loss; None where none was measured.

        Settings with fewer seeds than others are not compared with these.
        """
        most_seeds = max((len(setting.seeds) for setting in self.tried.get(method, ())), default=0)
        measured = [
            (setting.heldout_loss, index, setting)
            for index, setting in enumerate(self.tried.get(method, ()))
            if setting.heldout_loss is not None and len(setting.seeds) == most_seeds
        ]
        return min(measured)[-1] if measured else None

    def list_conflicts(self, seed: int, data_options: Mapping[str, Any]) -> list[str]:
        """List what a reporting run shares with the tuning, in words; empty where nothing.

        Args:
            seed: of the run.
            data_options: the `data` part of its configuration.
        """
        conflicts = []
        if seed in self.seeds:
            conflicts.append(f"seed {seed} was a seed of the tuning (its seeds: {_join(sorted(self.seeds))})")
        if not all(rows_are_apart(tuning_data, data_options) for tuning_data in self.data):
            conflicts.append("its rows are those that the setting was chosen on")
        return conflicts

    def list_marks(self, sweep_jobs: Sequence[SweepJob]) -> list[str]:
        """List in words what makes the results of reporting runs no fair comparison; empty where nothing does."""
        conflicts = {
            conflict: None for job in sweep_jobs for conflict in self.list_conflicts(job.seed, job.options("data"))
        }
        methods = dict.fromkeys(job.method for job in sweep_jobs if job.method not in METHODS_WITHOUT_SETTINGS)
        budgets = {
            method: (len(self.tried.get(method, ())), sum(len(tried.seeds) for tried in self.tried.get(method, ())))
            for method in methods
        }
        marks = [f"Not apart from the tuning: {conflict}." for conflict in conflicts]
        if len(set(budgets.values())) > 1:
            counts = ", ".join(f"{name} {settings} in {runs} runs" for name, (settings, runs) in budgets.items())
            marks.append(f"The methods had unequal tuning budgets (settings tried: {counts}).")
        return [*marks, *self._list_other_settings(sweep_jobs)]

    def _list_other_settings(self, sweep_jobs: Sequence[SweepJob]) -> Iterator[str]:
        """Name the methods whose settings were not tried, or were not the best of those tried."""
        for method in dict.fromkeys(job.method for job in sweep_jobs):
            tried = {setting.digest for setting in self.tried.get(method, ())}
            reported = {digest_setting(job.config) for job in sweep_jobs if job.method == method}
            best = self.best_setting(method)
            if not tried or method in METHODS_WITHOUT_SETTINGS:
                continue
            if not reported <= tried:
                yield f"A reported setting of {method} was not tried in the tuning."
            elif best is not None and reported != {best.digest}:
                yield f"A reported setting of {method} was not the best of the tuning, which was {best.options}."

    def to_json(self) -> dict[str, Any]:
        """Return the content of `tuning.json`."""
        return {
            "seeds": sorted(self.seeds),
            "data": list(self.data),
            "methods": {
                method: [{**asdict(setting), "best": setting == self.best_setting(method)} for setting in settings]
                for method, settings in self.tried.items()
            },
        }


def record_tuning(sweep_jobs: Sequence[SweepJob]) -> TuningRecord:
    """Record what the jobs of a sweep tried."""
    jobs_by_setting: dict[tuple[str, str], dict[int, SweepJob]] = {}
    for job in sweep_jobs:
        jobs_by_setting.setdefault((job.method, digest_setting(job.config)), {})[job.seed] = job
    tried: dict[str, list[TriedSetting]] = {}
    for (method, digest), jobs in jobs_by_setting.items():
        losses = [job.candidate_result.get("heldout_loss") for job in jobs.values()]
        known_losses = [loss for loss in losses if loss is not None]
        mean_loss = sum(known_losses) / len(known_losses) if len(known_losses) == len(losses) else None
        options = " ".join(
            override
            for override in next(iter(jobs.values())).overrides
            if option_name(override).partition(".")[0] not in OPTIONS_NOT_LISTED
        )
        tried.setdefault(method, []).append(TriedSetting(digest, options, tuple(sorted(jobs)), mean_loss))
    data = {hash_key(job.options("data")): job.options("data") for job in sweep_jobs}
    return TuningRecord(frozenset(job.seed for job in sweep_jobs), list(data.values()), tried)


def write_tuning(folder: Path, sweep_jobs: Sequence[SweepJob]) -> TuningRecord:
    """Write `tuning.json` into the folder of a tuning sweep."""
    record = record_tuning(sweep_jobs)
    write_json(folder / TUNING_FILE, record.to_json())
    return record


def read_tuning(folders: Sequence[str | Path]) -> TuningRecord:
    """Read what was tried in the folders of tuning sweeps, from `tuning.json` or else from their runs.

    Raises:
        UserError: a folder holds neither.
    """
    records = [_read_folder(Path(folder)) for folder in folders]
    tried: dict[str, list[TriedSetting]] = {}
    for record in records:
        for method, settings in record.tried.items():
            tried.setdefault(method, []).extend(settings)
    seeds = frozenset(seed for record in records for seed in record.seeds)
    return TuningRecord(seeds, [data for record in records for data in record.data], tried)


def refuse_tuning_runs(folders: Sequence[str], seed: int, data_options: Mapping[str, Any]) -> None:
    """Refuse a run whose seed or rows were used to find its setting.

    Raises:
        UserError: names what they have in common.
    """
    conflicts = read_tuning(folders).list_conflicts(seed, data_options)
    if conflicts:
        raise UserError(
            f"this run is to report a setting that was found in {_join(folders)}, and {'; '.join(conflicts)}: report "
            "it on seeds and rows of its own",
        )


def list_study_marks(sweep_jobs: Sequence[SweepJob]) -> list[str]:
    """List in words what stands between a sweep's results and a claim: where its settings come from."""
    folders = list(dict.fromkeys(folder for job in sweep_jobs for folder in _named_folders(job)))
    if folders:
        try:
            return read_tuning(folders).list_marks(sweep_jobs)
        except UserError as error:
            return [f"What was tuned is not known: {error}."]
    uses = {_read_part(job.options("data")).get("use") for job in sweep_jobs}
    if "tuning" in uses:
        return ["Settings were compared on rows for tuning here; report the chosen ones on other rows and seeds."]
    if "reporting" in uses:
        return ["No record of the tuning was named, so that nothing is known of where these settings come from."]
    return []


def is_tuning_sweep(sweep_jobs: Sequence[SweepJob]) -> bool:
    """Return True where all jobs use rows for tuning."""
    return all(_read_part(job.options("data")).get("use") == "tuning" for job in sweep_jobs)


def rows_are_apart(tuning_data: Mapping[str, Any], reporting_data: Mapping[str, Any]) -> bool:
    """Return True where two configurations of data share neither rows nor held-out rows.

    They share none where they are the two parts of one division, where each seed generates rows of its own, or where
    they have no file or dataset in common, the sources of mixtures included; that two files hold the same rows is not
    noticed.
    """
    parts = [_read_part(tuning_data), _read_part(reporting_data)]
    division = [(part.get("tuning_share"), part.get("seed")) for part in parts]
    if [part.get("use") for part in parts] == ["tuning", "reporting"] and division[0] == division[1]:
        return True
    if str(tuning_data.get("_target_", "")).endswith(GENERATED_ROWS):
        return True
    heldout_files = [(data.get("heldout") or {}).get("path") for data in (tuning_data, reporting_data)]
    if heldout_files[0] is not None and heldout_files[0] == heldout_files[1]:
        return False
    tuning_origins, reporting_origins = _list_origins(tuning_data), _list_origins(reporting_data)
    if not tuning_origins and not reporting_origins:  # sources of other packages
        return tuning_data.get("_target_") != reporting_data.get("_target_")
    return tuning_origins.isdisjoint(reporting_origins)


def _list_origins(data_options: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """List the files and datasets that a data source, or each source of a mixture, reads."""
    sources = data_options.get("sources")
    origins: set[tuple[str, ...]] = set()
    for options in [data_options, *(sources.values() if isinstance(sources, Mapping) else ())]:
        if options.get("path"):  # it is read instead of a dataset of the hub
            origins.add(("path", os.path.normpath(str(options["path"]))))
        elif options.get("name"):
            origins.add(tuple(str(options.get(name)) for name in DATASET_OPTIONS))
    return origins


def digest_setting(config: Mapping[str, Any]) -> str:
    """Return a digest of all options that make up a method's setting, those that do not count as tuned left out."""
    options = {name: value for part in SETTING_PARTS for name, value in _flatten(config.get(part), part)}
    return hash_key({name: value for name, value in options.items() if not _is_not_tuned(name)})[:16]


def _is_not_tuned(name: str) -> bool:
    is_budget = BUDGET_PATTERN.fullmatch(name) is not None
    return is_budget or name in OPTIONS_NOT_TUNED or name.rpartition(".")[2] == "seed"


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flatten(entry, f"{prefix}.{key}")
    else:
        yield prefix, value


def _named_folders(job: SweepJob) -> Sequence[str]:
    return job.options("report").get("tuning") or ()


def _read_part(data_options: Mapping[str, Any]) -> Mapping[str, Any]:
    return data_options.get("study_part") or {}


def _read_folder(folder: Path) -> TuningRecord:
    path = folder / TUNING_FILE
    if not path.is_file():
        return record_tuning(read_jobs(folder))
    content = json.loads(path.read_text("utf-8"))
    tried = {
        method: [
            TriedSetting(entry["digest"], entry["options"], tuple(entry["seeds"]), entry["heldout_loss"])
            for entry in settings
        ]
        for method, settings in content["methods"].items()
    }
    return TuningRecord(frozenset(content["seeds"]), content["data"], tried)


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
