"""Benchmarks of lm-evaluation-harness, run on a fine-tuned target of a run."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from gradfiltering.errors import UserError
from gradfiltering.judging.local_judge import load_alone
from gradfiltering.models.language_model import LanguageModel, PretrainedModel
from gradfiltering.runs.cache import write_json
from gradfiltering.runs.yaml_files import read_yaml

NEAR = 3  # task names of like spelling that an error lists
STDERR_RESAMPLES = 1000  # for metrics whose standard error has no formula


@dataclass(frozen=True)
class Benchmarks:
    """What is run.

    Attributes:
        tasks: names of tasks or groups.
        include: a folder with task files of one's own; None for the library's alone.
        limit: only the first so many documents of each task; None for all.
        shots: examples in the prompt; None as each task says.
        chat: prompts go through the model's chat template.
    """

    tasks: Sequence[str]
    include: Path | None
    limit: int | None
    shots: int | None
    chat: bool


def run_harness(
    folder: Path, model: str, benchmarks: Benchmarks, batch_size: int, device: str
) -> dict[str, dict[str, Any]]:
    """Measures a model of a run and adds what came out to the run's `summary.json`, under `harness` and the model.

    Nothing is downloaded unless a task's data are on the hub.

    Args:
        folder: of the run.
        model: its name under `target/`.
        benchmarks: what is run.
        batch_size: prompts at once.
        device: "auto", or a device's name.

    Returns:
        By task or group: metrics with standard errors, documents, shots, limit, version, and the library's version.

    Raises:
        UserError: the package, the run, the model or a task is not there, or a task's data cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"this needs lm-evaluation-harness ({error}): pip install 'gradfiltering[harness]'") from error
    summary = _summary(folder)
    manager = _manager(TaskManager, benchmarks)
    loaded = load_target(folder, model, device)
    if benchmarks.chat and not getattr(loaded.tokenizer, "chat_template", None):
        raise UserError(f"{loaded.name} has no chat template; leave --chat out")
    # The model itself is handed over: by its name the library would ask the hub about it.
    wrapped = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=batch_size,
        max_length=loaded.context,
    )
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped, tasks=list(benchmarks.tasks), task_manager=manager, num_fewshot=benchmarks.shots,
            limit=benchmarks.limit, apply_chat_template=benchmarks.chat, bootstrap_iters=STDERR_RESAMPLES,
            log_samples=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"the data of {', '.join(benchmarks.tasks)} cannot be had: {error}. Most tasks fetch theirs from the hub; "
            "check the connection, or give tasks of your own over local files with --include=FOLDER"
        ) from error
    results = read_results(found, benchmarks.limit)
    summary.setdefault("harness", {}).setdefault(model, {}).update(results)
    write_json(folder / "summary.json", summary)
    return results


def load_target(folder: Path, model: str, device: str) -> LanguageModel:
    """A fine-tuned model of a run with its tokenizer, in evaluation mode on the device.

    Raises:
        UserError: there is no such run or model, or its backbone cannot be loaded.
    """
    adapter, config = folder / "target" / model / "adapter", folder / "config.yaml"
    if not (adapter / "adapter_config.json").is_file() or not config.is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.glob("target/*/adapter"))) or "none"
        raise UserError(f"{adapter} is no adapter of a run; models in {folder}: {known}")
    about = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    options = read_yaml(config)["target"]["base_model"]
    base_model = PretrainedModel(
        model=about["base_model_name_or_path"],
        # A backbone trained by this project has its own tokenizer and no code.
        tokenizer=options.get("tokenizer"),
        precision=options["precision"],
        attention=options["attention"],
        trust_remote_code=options.get("trust_remote_code", False),
    )
    loaded, place = load_alone(base_model, device, "--device")
    tuned: Any = PeftModel.from_pretrained(loaded.model, str(adapter)).to(place).eval()
    return LanguageModel(tuned, loaded.tokenizer, f"{model} ({base_model.model})", str(adapter), 0.0, True)


def read_results(found: Mapping[str, Any], limit: int | None) -> dict[str, dict[str, Any]]:
    """What the library reports, by task: its keys "metric,filter" as metrics with value and standard error."""
    table: dict[str, dict[str, Any]] = {}
    for task, values in found["results"].items():
        numbers = {key: value for key, value in values.items() if "," in key and isinstance(value, int | float)}
        metrics = {}
        for key, value in numbers.items():
            name, _, kind = key.partition(",")
            if not name.endswith("_stderr"):
                metrics[key] = {"value": value, "stderr": numbers.get(f"{name}_stderr,{kind}")}
        samples = found["n-samples"].get(task, {}).get("effective", values.get("sample_len"))
        table[task] = {
            "metrics": metrics,
            "samples": samples,
            "shots": found["n-shot"].get(task),
            "limit": limit,
            "version": found["versions"].get(task),
            "lm_eval": found["lm_eval_version"],
        }
    return table


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it holds no summary.json")
    return json.loads(path.read_text("utf-8"))


def _manager(manager: Any, benchmarks: Benchmarks) -> Any:
    """Knows the tasks asked for; the library's own, thousands of files, are read only if one of them is meant."""
    if not benchmarks.tasks:
        raise UserError("no task is named; give --tasks=NAME,...")
    if benchmarks.include is not None and not benchmarks.include.is_dir():
        raise UserError(f"--include={benchmarks.include} is no folder")
    include = None if benchmarks.include is None else str(benchmarks.include)
    made = manager(include_path=include, include_defaults=False)
    if any(task not in made.all_tasks for task in benchmarks.tasks):
        made = manager(include_path=include)
    for task in benchmarks.tasks:
        if task not in made.all_tasks:
            near = ", ".join(difflib.get_close_matches(task, made.all_tasks, NEAR)) or "none"
            raise UserError(f"lm-evaluation-harness knows no task {task!r}; of like spelling: {near}")
    return made
