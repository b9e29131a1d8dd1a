"""The project in a notebook: select rows, and run whole experiments."""

import json
import tempfile
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradfiltering.config.composition import composed, to_overrides
from gradfiltering.config.locations import configuration_folder
from gradfiltering.data.remote_files import is_address
from gradfiltering.errors import UserError
from gradfiltering.reports.verdict_lines import Verdict

if TYPE_CHECKING:
    import datasets
    import pandas as pd

NAMELESS_ROWS = "ROWS.jsonl"  # for rows that came as a table or a list


@dataclass(frozen=True)
class RunResult:
    """Folder and summary of a finished run.

    Attributes:
        folder: the run folder.
    """

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        summary_content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text("utf-8"))
        return summary_content

    @property
    def verdict(self) -> Verdict:
        """The verdict on the selected rows; of one seed never more than `not tested`, or `do not use it`."""
        return Verdict.from_json(self.summary["verdict"])


@dataclass(frozen=True)
class RowSelection:
    """Selected rows with the scores behind them.

    Attributes:
        example_ids: positions of the selected rows in the input, ascending.
        scores: a row for each scored row of the input: `example_id`, `score`, `rank` and what the scorer adds.
        rows: the selected rows, in the form in which the rows were given; of a file, a list of dicts.
        summary: numbers, costs, diagnostics and warnings of the run behind it.
    """

    example_ids: list[int]
    scores: "pd.DataFrame"
    rows: Any
    summary: dict[str, Any]
    _folder: Path = field(repr=False, compare=False)
    _temporary_folder: "tempfile.TemporaryDirectory[str]" = field(repr=False, compare=False)
    _rows_path: str | None = field(default=None, repr=False, compare=False)  # of the file that the run read, now gone

    @property
    def verdict(self) -> Verdict:
        """The verdict on the selected rows: untested, unless diagnostics forbid their use, with the command of a test.

        The command names a file of your rows; where they were given as a table or a list, it names `ROWS.jsonl`.
        """
        return Verdict.from_json(self.summary["verdict"])

    def report(self, page_path: str | Path) -> Path:
        """Write the page that shows which rows were selected and why.

        Args:
            page_path: the HTML file.

        Returns:
            The same path.

        Raises:
            UserError: the rows were selected without a page.
        """
        written_page = self._folder / "report.html"
        if not written_page.is_file():
            raise UserError("the rows were selected without a page; leave out report.page=false")
        page_text = written_page.read_text("utf-8")
        if self._rows_path is not None:
            page_text = page_text.replace(self._rows_path, NAMELESS_ROWS)
        Path(page_path).write_text(page_text, "utf-8")
        return Path(page_path)


def run_experiment(overrides: Sequence[str] = ()) -> RunResult:
    """Run an experiment as the command line does: `run_experiment(["scorer=raw_drop", "until=select"])`.

    Args:
        overrides: what would follow `gradfiltering run`; sweeps (`-m`) are for the command line.

    Returns:
        The run folder and its summary; the folder is below `logs/runs`, or the one that `run_dir=` names.

    Raises:
        UserError: something that the caller can mend, with the option concerned.
    """
    from gradfiltering.config.launch import run_task

    if (
        not isinstance(overrides, Sequence)
        or not all(isinstance(override_text, str) for override_text in overrides)
        or isinstance(overrides, str)
        or any(override_text in ("-m", "--multirun") for override_text in overrides)
    ):
        raise UserError("give a list of NAME=VALUE; for a sweep use `gradfiltering run -m` on the command line")
    with composed(overrides) as run_config:
        run_task(run_config)
        return RunResult(Path(run_config.run_dir))


def select_rows(
    rows: "str | Path | Sequence[Mapping[str, Any]] | datasets.Dataset | pd.DataFrame",
    fraction: float = 0.1,
    proxy: str | Path = "smollm2",
    scorer: str = "gsnr",
    **options: Any,
) -> RowSelection:
    """Select the rows to train on, by the gradients of a small ensemble of LoRA adapters.

    Finished results go into the cache, so that asking again costs little; nothing else stays behind.

    Args:
        rows: a file or its address (json, jsonl, csv, parquet, …), a list of dicts, a `datasets.Dataset` or a
            `pandas.DataFrame`.
        fraction: share of all rows to select, in (0, 1].
        proxy: the model the rows are scored with: a name of `conf/proxy`, a folder, or a name on the Hugging Face hub.
        scorer: a name of `conf/scorer`.
        options: further options as on the command line, with mappings or full names: `ensemble={"m": 3}`,
            `**{"data.limit": 1000}`.

    Raises:
        UserError: the rows cannot be read or scored, or an option is wrong.
    """
    import pandas as pd

    temporary_folder = tempfile.TemporaryDirectory(prefix="gradfiltering-")
    with tempfile.TemporaryDirectory(prefix="gradfiltering-rows-") as rows_folder:
        rows_path = _write_rows(rows, Path(rows_folder))
        overrides = [*_proxy_overrides(proxy), f"scorer={scorer}", "data=file", "until=select", "logger=none"]
        fixed_options = {
            "data.path": rows_path,
            "selector.fraction": fraction,
            "run_dir": temporary_folder.name,
            "hydra.run.dir": temporary_folder.name,
            "report.figures": False,
        }
        all_overrides = [*overrides, *to_overrides(fixed_options), *to_overrides(options)]
        run_result = _run_on_rows(all_overrides, rows, rows_path)
    folder = run_result.folder
    if not (folder / "subset.parquet").is_file():
        raise UserError("the run ended before it selected rows; leave out until and plan, or use run_experiment")
    example_ids = pd.read_parquet(folder / "subset.parquet")["example_id"].tolist()
    scores_path = folder / "scores.parquet"
    scores = pd.read_parquet(scores_path) if scores_path.is_file() else pd.DataFrame({"example_id": [], "score": []})
    summary = run_result.summary
    command, read_path = summary["verdict"]["command"], None if isinstance(rows, str | Path) else str(rows_path)
    if command is not None and read_path is not None:
        summary["verdict"]["command"] = command.replace(read_path, NAMELESS_ROWS)
    selected_rows = _take_rows(rows, example_ids, folder)
    return RowSelection(example_ids, scores, selected_rows, summary, folder, temporary_folder, read_path)


def select_from_log(run_folder: str | Path, output_folder: str | Path, overrides: Sequence[str] = ()) -> RunResult:
    """Score the rows of a run's gradient log anew, select among them, and write scores, subset, diagnostics and page.

    The log is read in pieces, so that memory does not grow with its rows, unless the scorer or the selector
    compares rows with each other; these take a number of rows that the error names. No model is loaded.

    Args:
        run_folder: of a run that got as far as the proxy stage, or any folder with a `gradient_log/`.
        output_folder: where the results are written, in the files of a run folder.
        overrides: options as on the command line: `["scorer=raw_drop", "selector=stratified"]`, of `scorer`,
            `selector`, `epochs`, `diagnostics`, `report`, and `seed`. Scorer, epochs and seed are as in the run
            unless given; the others as in a new run.

    Raises:
        UserError: there is no log, an option is wrong, or the rows are too many.
    """
    from gradfiltering.config.log_selection import select_from_log as select

    return RunResult(select(run_folder, output_folder, overrides))


def _run_on_rows(overrides: Sequence[str], rows: Any, rows_path: Path | str) -> RunResult:
    """Run an experiment; of rows that came without a file, errors name no file that nobody knows."""
    try:
        return run_experiment(overrides)
    except UserError as error:
        if isinstance(rows, str | Path):
            raise
        raise UserError(str(error).replace(f" (data.path={rows_path})", "").replace(str(rows_path), "rows")) from error


def _proxy_overrides(proxy: str | Path) -> list[str]:
    named_proxies = {conf_file.stem for conf_file in (configuration_folder() / "proxy").glob("*.yaml")}
    if not isinstance(proxy, str | Path):
        raise UserError(f"proxy must be a name or a folder, got {proxy!r}")
    if str(proxy) in named_proxies:
        return [f"proxy={proxy}"]
    model_name = Path(proxy).absolute() if Path(proxy).is_dir() else proxy
    return ["proxy=gpt2", *to_overrides({"proxy.model": model_name})]


def _write_rows(rows: Any, folder: Path) -> Path | str:
    """Write rows to a file, unless they are in one; return its path or address."""
    if isinstance(rows, str) and (is_address(rows) or not rows.strip()):
        return rows
    if isinstance(rows, str | Path):
        return Path(rows).absolute()
    if isinstance(rows, Sized) and not len(rows):
        raise UserError(f"there are no rows in this {type(rows).__name__}; give one at least")
    if _library_of(rows) == "pandas" and type(rows).__name__ == "DataFrame":
        try:
            rows.to_parquet(folder / "rows.parquet", index=False)
        except (TypeError, ValueError) as error:  # pyarrow's errors are ValueErrors or TypeErrors
            raise UserError(f"the table cannot be written as parquet: {error}; mend or drop that column") from error
        return folder / "rows.parquet"
    if _library_of(rows) == "datasets" and hasattr(rows, "select") and hasattr(rows, "to_parquet"):
        rows.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise UserError(
            "rows must be a path, a list of dicts, a datasets.Dataset (of one split, not streamed) or a "
            f"pandas.DataFrame, got {type(rows).__name__}"
        )
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as row_file:
        row_file.writelines(_to_json_line(row_index, row) for row_index, row in enumerate(rows))
    return folder / "rows.jsonl"


def _to_json_line(row_index: int, row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row if isinstance(row, dict) else dict(row)) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"row {row_index} cannot be written as JSON: {error}; give text, numbers, lists and dicts"
        ) from error


def _take_rows(rows: Any, example_ids: list[int], folder: Path) -> Any:
    """Return the selected rows in the form in which rows were given."""
    if isinstance(rows, str | Path):
        with (folder / "subset.jsonl").open(encoding="utf-8") as row_file:
            return [json.loads(row_line) for row_line in row_file]
    if _library_of(rows) == "pandas":
        return rows.iloc[example_ids]
    if _library_of(rows) == "datasets":
        return rows.select(example_ids)
    return [rows[example_id] for example_id in example_ids]


def _library_of(rows: Any) -> str:
    """Return the library that a table comes from, without importing it."""
    return type(rows).__module__.partition(".")[0]
