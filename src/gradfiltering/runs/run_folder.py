"""The run folder: the one place that knows which files a run leaves, and reads and writes them.

Only rank zero writes; on the other ranks every writer does nothing. Readers of tables and gradient logs return None
where the run wrote none (`read_unscored` an empty table); those of configuration, environment and summary raise
FileNotFoundError. A file appears whole or not at all.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import pandas as pd
import pyarrow.parquet as pq
import yaml

from gradfiltering.distributed.process_group import rank, run_on_rank_zero
from gradfiltering.errors import UserError
from gradfiltering.masking import mask_override, mask_secrets, remember_secrets
from gradfiltering.requests import SnapshotUnit
from gradfiltering.runs.cache_record import link_result
from gradfiltering.runs.environment import describe_environment
from gradfiltering.runs.files import (
    atomic_path,
    clear_leftovers,
    delete_path,
    delete_symbolic_link,
    explain_failed_writes,
    write_json,
)
from gradfiltering.runs.gradient_log import PARQUET_FILE, GradientLogReader, partition_folder
from gradfiltering.runs.plain_text import replace_lone_surrogates
from gradfiltering.runs.yaml_files import read_yaml

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Arguments = ParamSpec("Arguments")

CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE = "config.yaml", "environment.json", "summary.json"
GRADIENT_LOG, HELDOUT_GRADIENT_LOG = "gradient_log", "gradient_log_heldout"
PROJECTIONS, INFLUENCE, ADAPTERS = "projections", "influence", "adapters"
ADAPTER_CONFIG_FILE = "adapter_config.json"  # PEFT's
PROJECTION_FILE = "projections.npy"
TRAJECTORY_FILE, TRUTH_FILE, ENSEMBLE_ROWS_FILE = "trajectory.parquet", "truth.parquet", "ensemble_rows.parquet"
SCORES_FILE, UNSCORED_FILE, HYGIENE_FILE = "scores.parquet", "unscored.parquet", "hygiene.parquet"
SUBSET_FILE, SUBSET_ROWS_FILE, SELECTION_FILE = "subset.parquet", "subset.jsonl", "selection.parquet"
ROWS_FILE, DATASET_INFO_FILE, CARD_FILE = "rows.parquet", "dataset_info.json", "README.md"
TARGET, ADAPTER, CURVE_FILE, ROUNDS_FILE, POOL_FILE = "target", "adapter", "curve.csv", "rounds.parquet", "pool.parquet"
HELDOUT_LOSSES_FILE = "heldout_losses.csv"
RESPONSES, VERDICTS_FILE = "responses", "verdicts.jsonl"
REPORT_FILE, FIGURES = "report.html", "figures"
CURVE_COLUMNS = ("step", "examples_seen", "tokens_seen", "seconds", "train_loss", "heldout_loss")
# What a new run in the folder removes; subset rows come in the input's own file type, too.
OUTPUTS = (
    GRADIENT_LOG, HELDOUT_GRADIENT_LOG, PROJECTIONS, INFLUENCE, TRAJECTORY_FILE, ENSEMBLE_ROWS_FILE, ADAPTERS,
    TRUTH_FILE, SCORES_FILE,
    UNSCORED_FILE, HYGIENE_FILE, "subset.*", "subset_*.jsonl", "subset_rows.parquet", SELECTION_FILE,
    DATASET_INFO_FILE, CARD_FILE, TARGET, RESPONSES, VERDICTS_FILE, ROWS_FILE, REPORT_FILE, FIGURES, SUMMARY_FILE,
)  # fmt: skip
LOGGER_FOLDERS = ("metrics", "tensorboard", "wandb", "lightning_logs")


class RunFolder:
    """A run folder.

    Args:
        folder_path: the folder; it is made when the first file is written.
    """

    def __init__(self, folder_path: Path | str):
        self.path = Path(folder_path)

    # The run: configuration, environment, summary.

    def begin(self, config: Any, seed: int, device: "torch.device", overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Remove an earlier run's outputs and write `config.yaml` and `environment.json`.

        Args:
            config: the resolved configuration.
            seed: of the run.
            device: of the run.
            overrides: of the command line, `key=value` each.

        Returns:
            The configuration without secrets.

        Raises:
            UserError: the folder holds files of the same names that no run made.
        """
        remember_secrets(config)
        masked_config: dict[str, Any] = mask_secrets(config)
        masked_overrides = [mask_override(command_override) for command_override in overrides]

        def write_beginning() -> None:
            self._remove_earlier_outputs()
            config_text = yaml.safe_dump(masked_config, sort_keys=False, allow_unicode=True)
            self.write_text(CONFIG_FILE, config_text)
            run_environment = {**describe_environment(seed, device), "overrides": masked_overrides}
            write_json(self.path / ENVIRONMENT_FILE, run_environment)

        run_on_rank_zero(write_beginning)
        return masked_config

    def _remove_earlier_outputs(self) -> None:
        if not self.path.is_dir():
            return
        earlier_outputs = [  # links that lead nowhere, too
            file_path
            for file_path in sorted(self.path.iterdir())
            if any(fnmatchcase(file_path.name, output_pattern) for output_pattern in OUTPUTS)
        ]
        if earlier_outputs and not (self.path / ENVIRONMENT_FILE).is_file():
            raise UserError(
                f"run_dir={self.path} holds {earlier_outputs[0].name}, which no earlier run made and this one would "
                "replace; give another folder"
            )
        for file_path in earlier_outputs:
            with explain_failed_writes(file_path):
                delete_path(file_path)
        for folder_name in LOGGER_FOLDERS:  # what loggers wrote stays, but not a link that they would write through
            delete_symbolic_link(self.path / folder_name)
        clear_leftovers(self.path)

    def settle_option(self, group: str, name: str, value: Any) -> None:
        """Write what an option that was left open came to into `config.yaml`.

        Args:
            group: of the option.
            name: in the group.
            value: that it came to.
        """

        def write_value() -> None:
            config_path = self.path / CONFIG_FILE
            config = read_yaml(config_path) if config_path.is_file() else {}
            if isinstance(config.get(group), dict):
                config[group][name] = value
                self.write_text(CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

        run_on_rank_zero(write_value)

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration, secrets masked."""
        config: dict[str, Any] = read_yaml(self.path / CONFIG_FILE)
        return config

    def read_environment(self) -> dict[str, Any]:
        """Read package versions, commit, seed, host, device and overrides."""
        return _read_json(self.path / ENVIRONMENT_FILE)

    def read_summary(self) -> dict[str, Any]:
        """Read `summary.json`."""
        return _read_json(self.path / SUMMARY_FILE)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`; numbers that are not finite become null."""
        if rank() == 0:
            write_json(self.path / SUMMARY_FILE, _replace_non_finite(summary))

    # Tables of rows.

    def read_scores(self) -> pd.DataFrame | None:
        """Read `example_id`, `score`, `rank` and the scorer's further columns."""
        return self._read_table(SCORES_FILE)

    def write_scores(self, table_columns: Mapping[str, "NDArray[Any]"]) -> None:
        """Write `scores.parquet` from `example_id`, `score`, `rank` and further columns."""
        self.write_table(SCORES_FILE, table_columns)

    def read_unscored(self) -> pd.DataFrame:
        """Read `example_id` and `reason` of the rows without a score; no rows where the file is missing."""
        unscored_table = self._read_table(UNSCORED_FILE)
        return pd.DataFrame({"example_id": [], "reason": []}) if unscored_table is None else unscored_table

    def write_unscored(self, unscored: Sequence[tuple[int, str]]) -> None:
        """Write example id and reason of each row without a score."""
        import pyarrow as pa

        schema = pa.schema([("example_id", pa.int64()), ("reason", pa.string())])
        reasons = [
            {"example_id": example_id, "reason": replace_lone_surrogates(reason)}
            for example_id, reason in sorted(unscored)
        ]
        reason_table = pa.Table.from_pylist(reasons, schema=schema)
        self.write(UNSCORED_FILE, lambda part_path: pq.write_table(reason_table, part_path))

    def read_hygiene(self) -> pd.DataFrame | None:
        """Read `example_id` of every row and, for each sign of a poor row, a truth value."""
        return self._read_table(HYGIENE_FILE)

    def write_hygiene(self, hits: Mapping[str, "NDArray[np.bool_]"]) -> None:
        """Write which rows show which signs: [N] truth values by sign."""
        row_count = len(next(iter(hits.values())))
        self.write_table(HYGIENE_FILE, {"example_id": range(row_count), **hits})

    def read_truth(self) -> pd.DataFrame | None:
        """Read `example_id` and the planted `kind` of each row, where it is known."""
        return self._read_table(TRUTH_FILE)

    def write_truth(self, kinds: Sequence[str] | None) -> None:
        """Write the planted kind of each row where it is known; scorers never read it."""
        if kinds is not None:
            self.write_table(TRUTH_FILE, {"example_id": list(range(len(kinds))), "kind": list(kinds)})

    def read_subset(self) -> pd.DataFrame | None:
        """Read `example_id` and `score` of the selected rows, in the order of selection."""
        return self._read_table(SUBSET_FILE)

    def write_subset(self, example_ids: "NDArray[np.int64]", scores: "NDArray[np.float64]") -> None:
        """Write id and score (nan for none) of the selected rows."""
        self.write_table(SUBSET_FILE, {"example_id": example_ids, "score": scores})

    def read_selection(self) -> pd.DataFrame | None:
        """Read the selector's trace, one row for each selected row in the order of selection."""
        return self._read_table(SELECTION_FILE)

    def write_selection(self, trace: Mapping[str, "NDArray[Any]"]) -> None:
        """Write the selector's trace: columns of equal length."""
        self.write_table(SELECTION_FILE, trace)

    def read_rows(self) -> pd.DataFrame | None:
        """Read `example_id`, `prompt`, `response` and `source` of all rows."""
        return self._read_table(ROWS_FILE)

    def read_data_facts(self) -> dict[str, str]:
        """Read `fingerprint` and `origin` of the data, where they are known."""
        file_path = self.path / ROWS_FILE
        file_metadata = (pq.read_metadata(file_path).metadata if file_path.is_file() else None) or {}
        metadata_texts = {
            entry_name.decode(): entry_value.decode("utf-8", "replace")
            for entry_name, entry_value in file_metadata.items()
        }
        return {
            entry_name: metadata_texts[entry_name]
            for entry_name in ("fingerprint", "origin")
            if entry_name in metadata_texts
        }

    # The proxy ensemble: gradient logs, projections, adapters.

    def read_gradient_log(self, heldout: bool = False) -> GradientLogReader | None:
        """Open the gradient log of the rows, or of the held-out rows; its snapshots are read as they are needed."""
        log_folder = self.path / (HELDOUT_GRADIENT_LOG if heldout else GRADIENT_LOG)
        return GradientLogReader(log_folder) if any(log_folder.glob(f"member=*/*=*/{PARQUET_FILE}")) else None

    def link_gradient_log(
        self, parquet_file: Path, member: int, epoch: int, heldout: bool = False, unit: SnapshotUnit = "epoch"
    ) -> None:
        """Put the cached log of one member and epoch, or number of updates, into the run folder."""
        log_folder = Path(HELDOUT_GRADIENT_LOG if heldout else GRADIENT_LOG)
        self.link(parquet_file, partition_folder(log_folder, member, epoch, unit) / PARQUET_FILE)

    def link_projections(self, cached_folder: Path, member: int, epoch: int, unit: SnapshotUnit = "epoch") -> None:
        """Put the cached projections of one member's gradients into the run folder."""
        self.link(cached_folder, partition_folder(Path(PROJECTIONS), member, epoch, unit))

    def link_influence(self, cached_folder: Path, member: int, epoch: int, validation: bool) -> None:
        """Put the cached projections at a checkpoint, of all rows or of the validation rows, into the run folder."""
        log_folder = Path(INFLUENCE) / ("validation" if validation else "rows")
        self.link(cached_folder, partition_folder(log_folder, member, epoch))

    def adapter_folder(self, member: int, epoch: int, unit: SnapshotUnit = "epoch") -> Path:
        """Return the folder of a member's adapter (PEFT) after an epoch, or a number of updates."""
        return partition_folder(self.path / ADAPTERS, member, epoch, unit)

    def link_adapter(self, cached_folder: Path, member: int, epoch: int, unit: SnapshotUnit = "epoch") -> None:
        """Put a member's cached adapter into the run folder."""
        self.link(cached_folder, self.adapter_folder(member, epoch, unit))

    def name_base_model(self, adapter_folder: Path, public_name: str | None) -> None:
        """Write the name that others know a base model by into the configuration of an adapter of this run.

        Args:
            adapter_folder: in the run folder.
            public_name: hub id or folder; None for a model that nobody else has.
        """
        if rank() == 0:
            config_file = adapter_folder / ADAPTER_CONFIG_FILE
            write_json(config_file, {**_read_json(config_file), "base_model_name_or_path": public_name})

    def write_ensemble_rows(self, example_ids: "NDArray[np.int64]", is_trained_on: "NDArray[np.bool_]") -> None:
        """Write which of the scorable rows the ensemble was trained on, where that was a sample."""
        self.write_table(ENSEMBLE_ROWS_FILE, {"example_id": example_ids, "trained_on": is_trained_on})

    def read_ensemble_rows(self) -> pd.DataFrame | None:
        """Read `example_id` and `trained_on`, where the ensemble was trained on a sample of the rows."""
        return self._read_table(ENSEMBLE_ROWS_FILE)

    def read_trajectory(self) -> pd.DataFrame | None:
        """Read `member`, `step`, `sketch` (64 numbers), `norm` and `update_norm` of the recorded steps."""
        return self._read_table(TRAJECTORY_FILE)

    # Targets: adapters, convergence curves, answers, verdicts.

    def target_models(self) -> list[str]:
        """Name the fine-tuned models, the candidate first."""
        model_names = [file_path.name for file_path in self.path.glob(f"{TARGET}/*") if file_path.is_dir()]
        return sorted(model_names, key=lambda model_name: (model_name != "candidate", model_name))

    def target_folder(self, model_name: str) -> Path:
        """Return the folder of a fine-tuned model."""
        return self.path / TARGET / model_name

    def read_curve(self, model_name: str) -> pd.DataFrame | None:
        """Read a model's convergence curve; nan where nothing was measured."""
        file_path = self.target_folder(model_name) / CURVE_FILE
        if not file_path.is_file():
            return None
        return pd.read_csv(file_path).reindex(columns=list(CURVE_COLUMNS)).astype("float64")

    def read_curves(self) -> dict[str, pd.DataFrame]:
        """Read the convergence curves of all models, the candidate first."""
        model_curves = {model_name: self.read_curve(model_name) for model_name in self.target_models()}
        return {model_name: model_curve for model_name, model_curve in model_curves.items() if model_curve is not None}

    def responses_file(self, model_name: str) -> Path:
        """Return the file of a model's answers."""
        return self.path / RESPONSES / f"{model_name}.jsonl"

    @property
    def verdicts_file(self) -> Path:
        """The file of all verdicts."""
        return self.path / VERDICTS_FILE

    # Writing, used by the methods above and for files whose content another package knows.

    def write(self, file_name: Path | str, write: Callable[[Path], object]) -> None:
        """Write one file or folder of the run on rank zero.

        Args:
            file_name: relative to the run folder.
            write: makes the file or folder at the path it is given.
        """
        if rank() == 0:
            with atomic_path(self.path / file_name) as part_path:
                write(part_path)

    def write_files(
        self,
        write: Callable[Concatenate[Path, Arguments], object],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> None:
        """Let rank zero write several files; `write` gets the run folder's path and further arguments.

        Raises:
            UserError: raised by `write`, on every rank.
        """
        run_on_rank_zero(write, self.path, *args, **kwargs)

    def write_text(self, file_name: Path | str, file_text: str) -> None:
        """Write a UTF-8 text file."""
        self.write(file_name, lambda part_path: part_path.write_text(file_text, encoding="utf-8", newline="\n"))

    def write_table(self, file_name: Path | str, column_table: pd.DataFrame | Mapping[str, Any]) -> None:
        """Write columns as a parquet file."""
        import pyarrow as pa

        def write_parquet(part_path: Path) -> None:
            is_frame = isinstance(column_table, pd.DataFrame)
            arrow_table = (
                pa.Table.from_pandas(column_table, preserve_index=False) if is_frame else pa.table(dict(column_table))
            )
            pq.write_table(arrow_table.replace_schema_metadata(None), part_path)

        self.write(file_name, write_parquet)

    def link(self, source: Path, file_name: Path | str) -> None:
        """Put a cached file, or the files of a cached folder, at a name in the run folder."""
        if rank() == 0:
            link_result(source, self.path / file_name)

    def _read_table(self, file_name: Path | str) -> pd.DataFrame | None:
        file_path = self.path / file_name
        return pq.read_table(file_path).to_pandas() if file_path.is_file() else None


def _replace_non_finite(json_value: Any) -> Any:
    if isinstance(json_value, Mapping):
        return {entry_name: _replace_non_finite(entry_value) for entry_name, entry_value in json_value.items()}
    if isinstance(json_value, list | tuple):
        return [_replace_non_finite(entry_value) for entry_value in json_value]
    return None if isinstance(json_value, float) and not math.isfinite(json_value) else json_value


def _read_json(file_path: Path) -> dict[str, Any]:
    file_content: dict[str, Any] = json.loads(file_path.read_text(encoding="utf-8"))
    return file_content
