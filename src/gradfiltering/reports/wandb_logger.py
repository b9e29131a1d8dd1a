"""A job as a Weights & Biases run: resumed under its id, grouped by sweep, its files as artifacts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger

from gradfiltering.reports.run_files import RunFiles
from gradfiltering.runs.files import hash_key
from gradfiltering.runs.run_folder import RunFolder

# Options that change the place, the speed or the extent of a run, but not its experiment.
INDIFFERENT_OPTIONS = {"run_dir", "until", "debug", "progress", "logger", "trainer", "cache", "batch"}
LONGEST_NAME = 100
ARTIFACT_FILES = {
    "scores": ("scores.parquet", "unscored.parquet"),
    "subset": ("subset.*", "subset_*.jsonl", "subset_rows.parquet", "dataset_info.json", "README.md"),
    "adapter": ("target/candidate/adapter/*", "target/candidate/curve.csv"),
}
ARTIFACT_SOURCES = {"scores": ["dataset"], "subset": ["dataset", "scores"], "adapter": ["subset"]}


class RunWandbLogger(WandbLogger):
    """Lightning's logger with an id from the run folder and the experiment's options.

    So a job that is killed and started again in its folder goes on in its W&B run.

    Args:
        save_dir: the run folder; it holds `config.yaml` and `environment.json`.
        name: shown; None for the overrides of the command line.
        group: None for the sweep, if the run is a job of one.
        id: None for the stable id.
        artifacts: whether scores, subset and adapter are logged as artifacts.
        options: of Lightning's logger and of `wandb.init`.
    """

    def __init__(
        self,
        *,
        save_dir: str | Path,
        name: str | None,
        group: str | None,
        id: str | None,
        artifacts: bool,
        **options: Any,
    ):
        run_dir = Path(save_dir)
        super().__init__(
            save_dir=run_dir,
            name=name or make_run_name(run_dir),
            group=group or find_sweep_name(),
            id=id or make_run_id(run_dir),
            **options,
        )
        self.artifacts = artifacts
        self._wandb_init.pop("anonymous", None)  # Lightning sends it unasked, and W&B warns of it

    def log_frame(self, name: str, table: pd.DataFrame) -> None:
        """Log a table; missing values are None."""
        import wandb

        table_rows: list[Any] = table.astype(object).where(table.notna(), None).to_numpy().tolist()
        wandb_table = wandb.Table(columns=[*table.columns], data=table_rows, allow_mixed_types=True)
        self.experiment.log({name: wandb_table})

    def log_figure(self, name: str, path: Path) -> None:
        """Log a picture."""
        import wandb

        self.experiment.log({name: wandb.Image(str(path))})

    def log_artifacts(self, run_files: RunFiles) -> None:
        """Log scores, subset and adapter as artifacts with their sources; the data are an input."""
        if not self.artifacts:
            return
        logged_artifacts = self._declare_dataset(run_files)
        for kind, file_patterns in ARTIFACT_FILES.items():
            paths = list(_find_files(run_files.path, file_patterns))
            if not any(path.match(file_patterns[0]) for path in paths):
                continue
            source_artifacts = {
                name: logged_artifacts[name] for name in ARTIFACT_SOURCES[kind] if name in logged_artifacts
            }
            metadata = {"selection": run_files.selection, "seed": run_files.environment.get("seed")}
            artifact = self._build_artifact(kind, run_files.path, paths, {**metadata, "made_from": source_artifacts})
            logged_artifacts[kind] = f"{artifact.name}, digest {artifact.digest}"
            self.experiment.log_artifact(artifact)

    def _declare_dataset(self, run_files: RunFiles) -> dict[str, str]:
        """Declare the data, known by their fingerprint and not copied, as the input of the run."""
        if "fingerprint" not in run_files.data_facts:
            return {}
        import wandb

        fingerprint = run_files.data_facts["fingerprint"]
        name = f"dataset-{fingerprint[:16]}"
        row_count = 0 if run_files.row_texts is None else len(run_files.row_texts)
        artifact = wandb.Artifact(name, "dataset", metadata={**run_files.data_facts, "rows": row_count})
        with artifact.new_file("fingerprint.txt", encoding="utf-8") as file:
            file.write(fingerprint + "\n")
        if self.experiment.offline:
            # The public call refuses an offline run; this is its content for an online run.
            self.experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self.experiment.use_artifact(artifact)
        return {"dataset": name}

    def _build_artifact(self, kind: str, run_dir: Path, paths: Sequence[Path], metadata: dict[str, Any]) -> Any:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.experiment.id}", kind, metadata=metadata)
        for path in paths:
            name = path.relative_to(run_dir).as_posix()
            # The run folder is the copy: W&B keeps no second copy of what may be gigabytes.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
        return artifact


def make_run_id(run_dir: Path) -> str:
    """Make the id that the same experiment in the same run folder always has."""
    config = RunFolder(run_dir).read_config()
    experiment_options = {key: value for key, value in config.items() if key not in INDIFFERENT_OPTIONS}
    return hash_key({"folder": str(run_dir.resolve()), "experiment": experiment_options})[:16]


def make_run_name(run_dir: Path) -> str:
    """Make a name of the overrides of the command line that matter, or of the folder's name."""
    overrides = [
        override
        for override in RunFolder(run_dir).read_environment().get("overrides", [])
        if override.split("=")[0].lstrip("+~") not in INDIFFERENT_OPTIONS
        and not override.startswith(("hydra.", "cache."))
    ]
    return " ".join(overrides)[:LONGEST_NAME] or run_dir.name


def find_sweep_name() -> str | None:
    """Find the last two parts of the sweep's folder, None outside of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return "/".join(Path(HydraConfig.get().sweep.dir).resolve().parts[-2:])


def _find_files(folder: Path, file_patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in file_patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())
