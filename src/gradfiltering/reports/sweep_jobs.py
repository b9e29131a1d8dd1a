"""The jobs of a sweep: their options, and the agreement of their selections and rankings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser

from gradfiltering.errors import UserError
from gradfiltering.reports.judge_lines import verdicts_are_usable
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.runs.yaml_files import read_yaml

# Options that are axes of their own, or on which no result depends.
AXES = ("method", "scorer", "selector", "ensemble.m", "epochs", "epochs.early", "epochs.late")
INDIFFERENT_OPTIONS = {
    "run_dir", "until", "logger", "progress", "debug", "cache", "store", "hydra", "trainer", "batch", "seed",
}  # fmt: skip
DATASET_NAMES = {"tatsu-lab/alpaca": "Alpaca", "vicgalle/alpaca-gpt4": "Alpaca-GPT4"}
MODEL_SIZES = {"7b": "LLaMA-2 7B", "13b": "LLaMA-2 13B"}
NOT_KNOWN = "–"
SNAPSHOT_SEARCHES = {"SettlingSnapshots": "auto", "LossFallSnapshots": "loss_fall"}
# The methods of the paper's tables, which are one scorer each, under the name that `scorer=` gives them.
SCORERS_OF_METHODS = {"gradfiltering": "gsnr", "superfiltering": "ifd"}
SELECTING_STAGES = ("base_model_passes", "score", "select")


class SweepJob(RunFiles):
    """A job of a sweep."""

    @property
    def name(self) -> str:
        """Number of the job in its sweep."""
        return self.path.name

    @property
    def method(self) -> str:
        """The `method` of the command line, where neither its scorer nor its selector was replaced.

        Otherwise the scorer, and the selector where it is not `top`; the selector alone where no score was used. Two
        methods may share scorer and selector, as those of high and of low loss do, so a method's own name comes first.
        """
        selection_summary = self.selection
        given_options = dict(override.lstrip("+~").partition("=")[::2] for override in self.overrides)
        given_method = given_options.get("method", "null")
        if given_method != "null" and not given_options.keys() & {"scorer", "selector"}:
            return SCORERS_OF_METHODS.get(given_method, given_method)
        selector_name = given_options.get("selector") or selection_summary.get("selector") or "top"
        if selection_summary and selection_summary.get("scorer") is None:  # a target that leads uses no selector
            selector_name = selection_summary.get("selector") or selector_name
            return "random" if selector_name == "random" else f"selector {selector_name}"
        class_name = str(self.options("scorer").get("_target_", "")).rpartition(".")[2]
        scorer_name = given_options.get("scorer") or selection_summary.get("scorer") or class_name or NOT_KNOWN
        return scorer_name if selector_name == "top" else f"{scorer_name}, {selector_name}"

    @property
    def member_count(self) -> str:
        """M."""
        return str(self.options("ensemble").get("m", NOT_KNOWN))

    @property
    def epoch_pair(self) -> str:
        """The pair of snapshots, such as `e1_e2`, or the search for it with its settings, such as `auto early=1`."""
        pair = self.options("epochs")
        search_name = SNAPSHOT_SEARCHES.get(str(pair.get("_target_", "")).rpartition(".")[2])
        if search_name is not None:
            return " ".join([search_name, *(f"{name}={pair[name]}" for name in ("early", "late") if name in pair)])
        if not {"early", "late"} <= pair.keys():
            return NOT_KNOWN
        letter = str(pair.get("unit", "epoch"))[0]
        limited = "_limited" if pair.get("longest_epoch") else ""
        return f"{letter}{pair['early']}_{letter}{pair['late']}{limited}"

    @property
    def fraction(self) -> float | None:
        """Share of the rows that was to be selected."""
        return self.options("selector").get("fraction")

    @property
    def dataset(self) -> str:
        """The dataset's name."""
        data_options = self.options("data")
        name = data_options.get("name") or data_options.get("path")
        if not name:
            return "tasks" if str(data_options.get("_target_", "")).endswith("TaskSource") else "data"
        return DATASET_NAMES.get(str(name), Path(str(name)).stem)

    @property
    def target_model(self) -> str:
        """The fine-tuned model's name."""
        model = str(self.options("target").get("model") or "")
        size = next((label for word, label in MODEL_SIZES.items() if word in model.lower()), None)
        return size or Path(model).name or "tiny"

    @property
    def has_usable_verdicts(self) -> bool:
        """False where the judge agreed too little with known preferences."""
        return verdicts_are_usable(self.summary)

    def winning_scores(self, baseline: str) -> dict[str, float]:
        """Pairwise winning score against a baseline by prompt set, `all` among them; none of an unusable judge."""
        if not self.has_usable_verdicts:
            return {}
        sets = self.pairwise_scores.get(baseline, {})
        return {name: score["value"] for name, score in sets.items() if score.get("value") is not None}

    @property
    def selecting_seconds(self) -> float:
        """Seconds of selecting, those that the cache saved among them: base model, ensemble, gradients, score, choice.

        In a LEAD run they are those of the training that selects.
        """
        seconds = sum(stage["seconds"] for stage in self.stages if stage["name"] in SELECTING_STAGES)
        for part in ("proxy", "influence"):
            seconds += sum(self.summary.get(part, {}).get(name, 0.0) for name in ("seconds", "reused_seconds"))
        leads = self.selection.get("selector") == "lead"
        return float(seconds + (self.candidate_result["seconds"] if leads else 0.0))

    def other_options(self, varying_options: set[str]) -> str:
        """Overrides of the options that differ between the jobs and are no axis."""
        return " ".join(override for override in self.overrides if option_name(override) in varying_options)

    @property
    def score_values(self) -> pd.Series:
        """[N] scores by example id."""
        return pd.Series(dtype=float) if self.scores is None else self.scores.set_index("example_id")["score"]


def read_jobs(folder: Path) -> list[SweepJob]:
    """Read the jobs of a sweep in their order.

    Raises:
        UserError: the folder holds no run.
    """
    paths = [path.parent for path in folder.glob("*/summary.json")]
    if not paths:
        raise UserError(f"{folder} holds no run with a summary.json; give the folder of a sweep")
    return [SweepJob(path) for path in sorted(paths, key=_job_order)]


def option_name(override: str) -> str:
    """The option that an override sets."""
    return override.lstrip("+~").partition("=")[0]


def find_varying_options(sweep_jobs: Sequence[SweepJob]) -> set[str]:
    """Find the options that differ between jobs and are neither an axis nor without effect on results."""
    job_options = [{option_name(override): override for override in job.overrides} for job in sweep_jobs]
    option_names = {name for options in job_options for name in options}
    return {
        name
        for name in option_names
        if len({options.get(name) for options in job_options}) > 1
        and name not in AXES
        and name.partition(".")[0] not in INDIFFERENT_OPTIONS
    }


def read_planned_values(folder: Path) -> dict[str, list[str]]:
    """Read the values of the axes that the sweep was started with, also of jobs that were never begun."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return {}
    hydra_options: dict[str, Any] = (read_yaml(path) or {}).get("hydra", {})
    sweep_parameters = (hydra_options.get("sweeper", {}) or {}).get("params") or {}
    overrides = [*(f"{key}={value}" for key, value in sweep_parameters.items())]
    overrides += hydra_options.get("overrides", {}).get("task") or []
    planned_values = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        name = override.get_key_element()
        if override.is_sweep_override() and name in ("scorer", "ensemble.m", "epochs"):
            planned_values[name] = [value.strip("'\"") for value in override.sweep_string_iterator()]
    return planned_values


def compute_overlaps(sweep_jobs: Sequence[SweepJob]) -> np.ndarray:
    """Compute the Jaccard index of the selected rows of every two jobs.

    Returns:
        [J, J], NaN where a job selected none.
    """
    no_rows = np.zeros(0, dtype=np.int64)
    selected_subsets = [no_rows if job.selected_ids is None else job.selected_ids for job in sweep_jobs]
    all_ids = np.unique(np.concatenate(selected_subsets))
    is_inside = np.stack([np.isin(all_ids, subset) for subset in selected_subsets]).astype(np.float32)
    common_counts, subset_sizes = (is_inside @ is_inside.T).astype(np.float64), is_inside.sum(1)
    with np.errstate(invalid="ignore"):
        pair_overlaps: np.ndarray = common_counts / (subset_sizes[:, None] + subset_sizes[None, :] - common_counts)
    pair_overlaps[subset_sizes == 0] = pair_overlaps[:, subset_sizes == 0] = np.nan
    return pair_overlaps


def compute_rank_correlations(sweep_jobs: Sequence[SweepJob]) -> np.ndarray:
    """Compute Spearman's correlation of the scores of every two jobs, over the rows that both scored.

    Returns:
        [J, J], NaN where there is none.
    """
    job_scores = pd.concat([job.score_values for job in sweep_jobs], axis=1, ignore_index=True)
    return job_scores.corr(method="spearman", min_periods=2).to_numpy(copy=True)


def average_over_others(pair_values: np.ndarray) -> list[float | None]:
    """Average [J, J] values of pairs for each job over the other jobs."""
    pair_values = pair_values.copy()
    np.fill_diagonal(pair_values, np.nan)
    return [float(np.nanmean(values)) if np.isfinite(values).any() else None for values in pair_values]


def _job_order(path: Path) -> tuple[int, str]:
    return (int(path.name), "") if path.name.isdigit() else (1 << 31, path.name)
