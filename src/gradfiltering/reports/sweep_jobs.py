"""The jobs of a sweep: what each was asked for, what came out, and how far their choices and rankings agree."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import rankdata

from gradfiltering.methods.diagnostics import spearman
from gradfiltering.reports.page.folder import read_curves
from gradfiltering.runs.yaml_files import read_yaml

# Options that are axes of their own, or that no result depends on.
AXES = ("method", "scorer", "selector", "ensemble.m", "epochs", "epochs.early", "epochs.late")
PLACES = ("run_dir", "logger", "progress", "debug", "cache", "hydra", "trainer", "batch", "seed")
DATASETS = {"tatsu-lab/alpaca": "Alpaca", "vicgalle/alpaca-gpt4": "Alpaca-GPT4"}
SIZES = {"7b": "LLaMA-2 7B", "13b": "LLaMA-2 13B"}


@dataclass(frozen=True)
class Job:
    """One job's folder, read as it is asked for.

    Attributes:
        path: run folder.
        summary: content of `summary.json`.
        asked: overrides of the command line.
        config: the resolved configuration, empty where the folder has none.
    """

    path: Path
    summary: Mapping[str, Any]
    asked: Sequence[str]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Reads the small files."""
        summary = json.loads((path / "summary.json").read_text("utf-8"))
        about = json.loads((path / "environment.json").read_text("utf-8"))
        config = path / "config.yaml"
        known = read_yaml(config) if config.is_file() else {}
        return cls(path, summary, about.get("overrides", []), known)

    @property
    def method(self) -> str:
        """Scorer, and selector where it is not `top`."""
        selection = self.summary.get("selection", {})
        given = dict(one.lstrip("+~").partition("=")[::2] for one in self.asked)
        scorer = given.get("scorer") or selection.get("scorer") or self._class("scorer")
        selector = given.get("selector") or selection.get("selector") or "top"
        if selection and selection.get("scorer") is None:  # by what did choose: a target that leads asks no selector
            return f"selector {selection.get('selector') or selector}"
        return scorer if selector == "top" else f"{scorer}, {selector}"

    @property
    def members(self) -> int | None:
        """M."""
        return self.config.get("ensemble", {}).get("m")

    @property
    def epochs(self) -> str | None:
        """The pair of snapshots, such as `e1_e2`."""
        pair = self.config.get("epochs", {})
        return f"e{pair['early']}_e{pair['late']}" if {"early", "late"} <= pair.keys() else None

    @property
    def fraction(self) -> float | None:
        """Of the rows that were to be chosen."""
        return self.config.get("selector", {}).get("fraction")

    @property
    def dataset(self) -> str:
        """The data by name."""
        data = self.config.get("data", {})
        name = data.get("name") or data.get("path")
        if not name:
            return "tasks" if str(data.get("_target_", "")).endswith("TaskSource") else "data"
        return DATASETS.get(str(name), Path(str(name)).stem)

    @property
    def target(self) -> str:
        """The fine-tuned model by name."""
        model = str(self.config.get("target", {}).get("model") or "")
        size = next((label for word, label in SIZES.items() if word in model.lower()), None)
        return size or Path(model).name or "tiny"

    def rest(self, varying: set[str]) -> str:
        """What else was asked for, of options that are not the same in all jobs."""
        return " ".join(one for one in self.asked if key_of(one) in varying)

    @cached_property
    def subset(self) -> np.ndarray:
        """Ids of the chosen rows; none where nothing was chosen."""
        path = self.path / "subset.parquet"
        none = np.zeros(0, dtype=np.int64)
        return pq.read_table(path, columns=["example_id"])["example_id"].to_numpy() if path.is_file() else none

    @cached_property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids, ascending, and scores; none where nothing was scored."""
        path = self.path / "scores.parquet"
        if not path.is_file():
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        table = pq.read_table(path, columns=["example_id", "score"]).sort_by("example_id")
        return table["example_id"].to_numpy(), table["score"].to_numpy()

    @cached_property
    def curves(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns of the convergence curve of each model that was trained."""
        return read_curves(self.path)

    def _class(self, part: str) -> str:
        return str(self.config.get(part, {}).get("_target_", "")).rpartition(".")[2] or "–"


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep in their order."""
    return [Job.read(path) for path in sorted((path.parent for path in folder.glob("*/summary.json")), key=_order)]


def key_of(override: str) -> str:
    """The option an override is about."""
    return override.lstrip("+~").partition("=")[0]


def varying(jobs: Sequence[Job]) -> set[str]:
    """Options that differ between jobs and are neither an axis nor a place."""
    asked = [{key_of(one): one for one in job.asked} for job in jobs]
    names = {name for one in asked for name in one}
    differing = {name for name in names if len({one.get(name) for one in asked}) > 1}
    return {name for name in differing if name not in AXES and name.partition(".")[0] not in PLACES}


def planned(folder: Path) -> dict[str, list[str]]:
    """Values of the axes that the sweep was asked for, also of jobs that were never started."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return {}
    hydra = (read_yaml(path) or {}).get("hydra", {})
    params = (hydra.get("sweeper", {}) or {}).get("params") or {}
    asked = [*(f"{key}={value}" for key, value in params.items()), *(hydra.get("overrides", {}).get("task") or [])]
    found = {}
    for one in OverridesParser.create().parse_overrides(asked):
        if one.is_sweep_override() and one.get_key_element() in ("scorer", "ensemble.m", "epochs"):
            found[one.get_key_element()] = [value.strip("'\"") for value in one.sweep_string_iterator()]
    return found


def overlaps(jobs: Sequence[Job]) -> np.ndarray:
    """[J, J] Jaccard of the chosen rows, NaN where a job chose none."""
    known = np.unique(np.concatenate([job.subset for job in jobs]))
    inside = np.zeros((len(jobs), len(known)), dtype=np.float32)
    for place, job in enumerate(jobs):
        inside[place, np.searchsorted(known, job.subset)] = 1
    common = (inside @ inside.T).astype(np.float64)
    sizes = inside.sum(1)
    with np.errstate(invalid="ignore"):
        found = common / (sizes[:, None] + sizes[None, :] - common)
    found[sizes == 0] = found[:, sizes == 0] = np.nan
    return found


def rank_correlations(jobs: Sequence[Job]) -> np.ndarray:
    """[J, J] Spearman's correlation of scores over the rows that both jobs scored, NaN where there is none."""
    found = np.full((len(jobs), len(jobs)), np.nan)
    standard = [_standard(job.scores[1]) for job in jobs]
    for i, one in enumerate(jobs):
        for j in range(i, len(jobs)):
            other = jobs[j]
            first, second = standard[i], standard[j]
            if np.array_equal(one.scores[0], other.scores[0]):
                value = None if first is None or second is None else float(first @ second)
            else:
                _, at, there = np.intersect1d(one.scores[0], other.scores[0], return_indices=True)
                value = spearman(one.scores[1][at], other.scores[1][there])
            found[i, j] = found[j, i] = np.nan if value is None else value
    return found


def mean_with_others(pairs: np.ndarray) -> list[float | None]:
    """Of each job, the mean over the other jobs."""
    others = pairs.copy()
    np.fill_diagonal(others, np.nan)
    return [float(np.nanmean(row)) if np.isfinite(row).any() else None for row in others]


def _standard(values: np.ndarray) -> np.ndarray | None:
    """Ranks of mean 0 and length 1, so that their product is Spearman's correlation."""
    if len(values) < 2 or np.ptp(values) == 0:
        return None
    ranks = rankdata(values)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _order(job: Path) -> tuple[int, str]:
    return (int(job.name), "") if job.name.isdigit() else (1 << 31, job.name)
