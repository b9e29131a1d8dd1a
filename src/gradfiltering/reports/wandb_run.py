"""One job as one Weights & Biases run: resumed under the same id, grouped by sweep, its files as artifacts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger

from gradfiltering.data.row_texts import ROWS_FILE as ROWS
from gradfiltering.reports.logger_tables import Extract
from gradfiltering.runs.cache import hash_key
from gradfiltering.runs.yaml_files import read_yaml

# Options that change how, where or how far a run goes, but not which experiment it is.
NOT_THE_EXPERIMENT = {"run_dir", "until", "debug", "progress", "logger", "trainer", "cache", "batch"}
LONGEST_NAME = 100
ARTIFACTS = {
    "scores": ("scores.parquet", "unscored.parquet"),
    "subset": ("subset.*", "subset_rows.parquet", "dataset_info.json", "README.md"),
    "adapter": ("target/candidate/adapter/*", "target/candidate/curve.csv"),
}
MADE_FROM = {"scores": ["dataset"], "subset": ["dataset", "scores"], "adapter": ["subset"]}


class WandbRun(WandbLogger):
    """Lightning's logger with an id of its own making.

    The run folder and the experiment's options decide the id, so a job that is killed and started again in its folder
    goes on in the same W&B run.

    Args:
        project: of W&B.
        entity: user or team; None for the one that is logged in.
        name: shown; None for what was asked for on the command line.
        group: None for the sweep, if the run is a job of one.
        id: None for the stable one.
        tags: of the run.
        save_dir: the run folder; it holds `config.yaml` and `environment.json`.
        offline: whether nothing is sent.
        artifacts: whether scores, subset and adapter are logged as artifacts.
        settings: `wandb.Settings`.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        name: str | None,
        group: str | None,
        id: str | None,
        tags: Sequence[str] | None,
        save_dir: str | Path,
        offline: bool,
        artifacts: bool,
        settings: Any,
    ):
        folder = Path(save_dir)
        super().__init__(
            project=project,
            entity=entity,
            name=name or run_name(folder),
            group=group or sweep_name(),
            id=id or run_id(folder),
            tags=tags,
            save_dir=folder,
            offline=offline,
            settings=settings,
        )
        self.folder = folder
        self.artifacts = artifacts

    def log_extract(self, table: Extract) -> None:
        """Logs a table."""
        import wandb

        rows: list[Any] = list(table.rows)
        shown = wandb.Table(columns=[*table.columns], data=rows, allow_mixed_types=True)
        self.experiment.log({table.name: shown})

    def log_figure(self, name: str, path: Path) -> None:
        """Logs a picture."""
        import wandb

        self.experiment.log({name: wandb.Image(str(path))})

    def log_files(self, summary: Mapping[str, Any]) -> None:
        """Logs scores, subset and adapter as artifacts; each says what it was made from, and the data are an input."""
        if not self.artifacts:
            return
        run, made = self.experiment, self._dataset()
        common = {"selection": summary.get("selection", {}), "seed": _environment(self.folder).get("seed")}
        for kind, patterns in ARTIFACTS.items():
            files = list(_files(self.folder, patterns))
            if not any(file.match(patterns[0]) for file in files):
                continue
            source = {one: made[one] for one in MADE_FROM[kind] if one in made}
            artifact = self._artifact(kind, files, {**common, "made_from": source})
            made[kind] = f"{artifact.name}, digest {artifact.digest}"
            run.log_artifact(artifact)

    def _dataset(self) -> dict[str, str]:
        """Declares the data, known by their fingerprint and not copied, as what the run started from."""
        path = self.folder / ROWS
        if not path.is_file():
            return {}
        import wandb

        about = {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}
        known = {key: about[key] for key in ("fingerprint", "origin") if key in about}
        if "fingerprint" not in known:
            return {}
        name = f"dataset-{known['fingerprint'][:16]}"
        artifact = wandb.Artifact(name, "dataset", metadata={**known, "rows": pq.read_metadata(path).num_rows})
        with artifact.new_file("fingerprint.txt", encoding="utf-8") as file:
            file.write(known["fingerprint"] + "\n")
        if self.experiment.offline:
            # The public call refuses an offline run; this is what it does in an online one.
            self.experiment._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self.experiment.use_artifact(artifact)
        return {"dataset": name}

    def _artifact(self, kind: str, files: Sequence[Path], metadata: dict[str, Any]) -> Any:
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.experiment.id}", kind, metadata=metadata)
        for file in files:
            name = file.relative_to(self.folder).as_posix()
            # The run folder is the copy: W&B keeps no second one of what may be gigabytes.
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
        return artifact


def run_id(folder: Path) -> str:
    """Id that the same experiment in the same run folder always has."""
    config = read_yaml(folder / "config.yaml")
    experiment = {key: value for key, value in config.items() if key not in NOT_THE_EXPERIMENT}
    return hash_key({"folder": str(folder.resolve()), "experiment": experiment})[:16]


def run_name(folder: Path) -> str:
    """What was asked for on the command line, places left out, or the folder's name."""
    asked = [
        one for one in _environment(folder).get("overrides", [])
        if one.split("=")[0].lstrip("+~") not in NOT_THE_EXPERIMENT and not one.startswith(("hydra.", "cache."))
    ]  # fmt: skip
    return " ".join(asked)[:LONGEST_NAME] or folder.name


def sweep_name() -> str | None:
    """The last two parts of the sweep's folder, None outside of a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return "/".join(Path(HydraConfig.get().sweep.dir).resolve().parts[-2:])


def _environment(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text("utf-8"))


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())
