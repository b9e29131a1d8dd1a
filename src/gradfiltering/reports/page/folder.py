"""What a run left in its folder, read for the page; parts that were not run are None."""

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradfiltering.data import row_texts as shown
from gradfiltering.ensembles.snapshots import SnapshotPair
from gradfiltering.errors import UserError
from gradfiltering.runs.gradient_log import GradientLog
from gradfiltering.runs.yaml_files import read_yaml

CURVE_COLUMNS = ("step", "examples_seen", "tokens_seen", "seconds", "train_loss", "heldout_loss")


@dataclass(frozen=True)
class Texts:
    """Prompt, response and source of rows.

    Attributes:
        example_ids: [K] int64, ascending.
        table: K rows with `prompt`, `response` and `source`.
        whole: whether every row of the dataset is among them.
        about: `fingerprint` and `origin` of the data, where known.
    """

    example_ids: np.ndarray
    table: pa.Table
    whole: bool
    about: dict[str, str]

    def column(self, name: str, example_ids: np.ndarray) -> list[Any]:
        """Values of a column for some rows, None for a row that is not among them."""
        places = np.searchsorted(self.example_ids, example_ids)
        places = np.minimum(places, max(len(self.example_ids) - 1, 0))
        known = self.example_ids[places] == example_ids if len(self.example_ids) else np.zeros(len(example_ids), bool)
        found = self.table[name].take(pa.array(places[known])).to_pylist()
        values = iter(found)
        return [next(values) if here else None for here in known.tolist()]


class RunFolder:
    """A run folder, read as it is asked for.

    Args:
        path: the folder.

    Raises:
        UserError: it holds no run.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        for name in ("summary.json", "environment.json", "config.yaml"):
            if not (self.path / name).is_file():
                raise UserError(f"{self.path} has no {name}; give the folder of a run (run_dir=)")
        self.summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text("utf-8"))
        self.environment: dict[str, Any] = json.loads((self.path / "environment.json").read_text("utf-8"))
        self.config: dict[str, Any] = read_yaml(self.path / "config.yaml")

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Of the summary."""
        return self.summary.get("diagnostics", {})

    @property
    def total(self) -> int:
        """Rows of the dataset; 0 where the run ended before it was read."""
        return int(self.summary.get("data", {}).get("examples", 0))

    @property
    def epochs(self) -> SnapshotPair:
        """The compared snapshots."""
        return SnapshotPair(self.config["epochs"]["early"], self.config["epochs"]["late"])

    @cached_property
    def scores(self) -> dict[str, np.ndarray] | None:
        """Columns of `scores.parquet`."""
        return self._columns("scores.parquet")

    @cached_property
    def chosen(self) -> np.ndarray | None:
        """[K] ids of the chosen rows, ascending."""
        columns = self._columns("subset.parquet")
        return None if columns is None else np.sort(columns["example_id"])

    @cached_property
    def unscored(self) -> dict[int, str]:
        """Why a row has no score, by example id."""
        path = self.path / "unscored.parquet"
        rows = pq.read_table(path).to_pylist() if path.is_file() else []
        return {row["example_id"]: row["reason"] for row in rows}

    @cached_property
    def kinds(self) -> list[str] | None:
        """The planted kind of each row, where known."""
        path = self.path / "truth.parquet"
        return pq.read_table(path)["kind"].to_pylist() if path.is_file() else None

    @cached_property
    def log(self) -> GradientLog | None:
        """The gradient log."""
        return self._log("gradient_log")

    @cached_property
    def heldout_log(self) -> GradientLog | None:
        """The gradient log of held-out rows."""
        return self._log("gradient_log_heldout")

    @cached_property
    def trajectory(self) -> dict[str, np.ndarray] | None:
        """`member` [K], `step` [K] and `sketch` [K, 64] of `trajectory.parquet`."""
        path = self.path / "trajectory.parquet"
        if not path.is_file():
            return None
        table = pq.read_table(path)
        sketch = np.array(table["sketch"].to_pylist(), dtype=np.float64)
        return {"member": table["member"].to_numpy(), "step": table["step"].to_numpy(), "sketch": sketch}

    @cached_property
    def curves(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns of each target's `curve.csv`, NaN where nothing was measured; the candidate first."""
        return read_curves(self.path)

    @cached_property
    def texts(self) -> Texts:
        """The rows' text: of all rows, or of the chosen ones where an older run kept no others."""
        path = self.path / shown.ROWS_FILE
        if path.is_file():
            table = pq.read_table(path)
            about = {
                k.decode(): v.decode("utf-8", "replace") for k, v in (pq.read_metadata(path).metadata or {}).items()
            }
            known = {name: about[name] for name in ("fingerprint", "origin") if name in about}
            return Texts(table["example_id"].to_numpy(), table, True, known)
        return self._chosen_texts()

    def _chosen_texts(self) -> Texts:
        from gradfiltering.data.schemas import Columns, detect

        rows, ids = [], self.chosen
        if ids is not None and (self.path / "subset.jsonl").is_file():
            with (self.path / "subset.jsonl").open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        found: dict[str, list[Any]] = {"prompt": [], "response": [], "source": []}
        if rows:
            columns = self.config["data"].get("columns") or {}
            names = Columns(**{name: value for name, value in columns.items() if name != "_target_"})
            present = list(dict.fromkeys(name for row in rows for name in row))
            schema = detect(present, names, self.config["data"].get("schema") or "auto", "subset.jsonl")
            for row in rows:
                prompt, response = shown.prompt_and_response(schema, row)
                source = str(row["source"]) if row.get("source") is not None else None
                for name, value in zip(found, (prompt, response, source), strict=True):
                    found[name].append(value)
        held = ids if ids is not None and rows else np.zeros(0, dtype=np.int64)
        text = {
            name: [shown.replace_lone_surrogates(v) if isinstance(v, str) else v for v in values]
            for name, values in found.items()
        }
        return Texts(held, pa.table({name: pa.array(v, pa.large_string()) for name, v in text.items()}), False, {})

    def _columns(self, name: str) -> dict[str, np.ndarray] | None:
        path = self.path / name
        if not path.is_file():
            return None
        table = pq.read_table(path)
        return {column: table[column].to_numpy() for column in table.schema.names}

    def _log(self, name: str) -> GradientLog | None:
        folder = self.path / name
        return GradientLog(folder) if any(folder.glob("member=*/epoch=*/*.parquet")) else None


def read_curves(run_dir: Path) -> dict[str, dict[str, np.ndarray]]:
    """Columns of each target's `curve.csv` by model, NaN where nothing was measured; the candidate first."""
    names = sorted((path.parent.name for path in run_dir.glob("target/*/curve.csv")), key=_candidate_first)
    return {name: _curve(run_dir / "target" / name / "curve.csv") for name in names}


def _curve(path: Path) -> dict[str, np.ndarray]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in CURVE_COLUMNS}


def _candidate_first(name: str) -> tuple[bool, str]:
    return name != "candidate", name
