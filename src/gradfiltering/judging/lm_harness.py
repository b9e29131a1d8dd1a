"""Benchmarks of lm-evaluation-harness, run on a fine-tuned model of a run."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradfiltering.errors import UserError
from gradfiltering.judging.local_judge import load_on_device
from gradfiltering.models.language_model import LanguageModel, PretrainedModel
from gradfiltering.models.lora import load_adapter
from gradfiltering.runs.files import write_json
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.runs.yaml_files import read_yaml

SHOWN_TASKS = 3  # task names of like spelling that an error lists
STDERR_RESAMPLES = 1000  # for metrics whose standard error has no formula


def run_harness(
    run_folder: Path,
    model_name: str,
    task_names: Sequence[str],
    task_folder: Path | None = None,
    document_limit: int | None = None,
    shot_count: int | None = None,
    use_chat_template: bool = False,
    batch_size: int = 8,
    device_name: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Measure a model of a run and add the results to its `summary.json`, under `harness`.

    Nothing is downloaded unless a task's data are on the hub.

    Args:
        run_folder: folder of the run.
        model_name: the model's name under `target/`.
        task_names: names of tasks or groups.
        task_folder: a folder with task files of your own; None for the library's alone.
        document_limit: most documents of each task, from its start; None for all.
        shot_count: examples in the prompt; None for each task's own number.
        use_chat_template: put prompts into the model's chat template.
        batch_size: prompts at once.
        device_name: "auto", or a device's name.

    Returns:
        By task or group: metrics with standard errors, documents, shots, limit, version, and the
        library's version.

    Raises:
        UserError: the package, the run, the model or a task is not there, or a task's data cannot
            be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"this needs lm-evaluation-harness ({error}): pip install 'gradfiltering[harness]'") from error
    summary_path = run_folder / "summary.json"
    if not summary_path.is_file():
        raise UserError(f"{run_folder} is no run folder: it holds no summary.json")
    run_summary = json.loads(summary_path.read_text("utf-8"))
    task_manager = _find_tasks(TaskManager, task_names, task_folder)
    tuned_model = load_tuned_model(run_folder, model_name, device_name)
    if use_chat_template and not getattr(tuned_model.tokenizer, "chat_template", None):
        raise UserError(f"{tuned_model.name} has no chat template to put prompts into")
    # The model itself is handed over: by its name the library would ask the hub about it.
    wrapped_model = HFLM(
        pretrained=tuned_model.model,
        tokenizer=tuned_model.tokenizer,
        batch_size=batch_size,
        max_length=tuned_model.context_length,
    )
    try:
        harness_report = lm_eval.simple_evaluate(
            model=wrapped_model,
            tasks=list(task_names),
            task_manager=task_manager,
            num_fewshot=shot_count,
            limit=document_limit,
            apply_chat_template=use_chat_template,
            bootstrap_iters=STDERR_RESAMPLES,
            log_samples=False,
        )
    except OSError as error:
        raise UserError(
            f"the data of {', '.join(task_names)} cannot be had: {error}. Most tasks fetch "
            "theirs from the hub; check the connection, or give a folder with tasks of your own "
            "over local files"
        ) from error
    task_results = read_results(harness_report, document_limit)
    run_summary.setdefault("harness", {}).setdefault(model_name, {}).update(task_results)
    write_json(summary_path, run_summary)
    return task_results


def load_tuned_model(run_folder: Path, model_name: str, device_name: str) -> LanguageModel:
    """Load a fine-tuned model of a run with its tokenizer, in evaluation mode on the device.

    Raises:
        UserError: there is no such run or model, or its base model cannot be loaded.
    """
    adapter_folder = run_folder / "target" / model_name / "adapter"
    config_path, adapter_path = run_folder / "config.yaml", adapter_folder / "adapter_config.json"
    if not adapter_path.is_file() or not config_path.is_file():
        folders = run_folder.glob("target/*/adapter")
        models = ", ".join(sorted(folder.parent.name for folder in folders)) or "none"
        raise UserError(f"{adapter_folder} is no adapter of a run; models in {run_folder}: {models}")
    adapter_config = json.loads(adapter_path.read_text("utf-8"))
    noted_models = RunFolder(run_folder).read_summary().get("base_models", {})
    model_options = read_yaml(config_path)["target"]["base_model"]
    base_model = PretrainedModel(
        # A model that this project trained or converted has no name that it can be loaded by.
        model=noted_models.get("target", {}).get("path") or adapter_config["base_model_name_or_path"],
        # A base model trained by this project has its own tokenizer and no code.
        tokenizer=model_options.get("tokenizer"),
        precision=model_options["precision"],
        attention=model_options["attention"],
        trust_remote_code=model_options.get("trust_remote_code", False),
        quantization=model_options.get("quantization"),  # the weights that the adapter was trained on
    )
    language_model, device = load_on_device(base_model, device_name)
    tuned_model: Any = load_adapter(language_model.model, adapter_folder)
    return LanguageModel(
        tuned_model.to(device).eval(),
        language_model.tokenizer,
        f"{model_name} ({base_model.model})",
        str(adapter_folder),
        0.0,
        True,
    )


def read_results(harness_report: Mapping[str, Any], document_limit: int | None) -> dict[str, dict[str, Any]]:
    """Read the library's report by task: metrics "metric,filter" with value and standard error."""
    task_results: dict[str, dict[str, Any]] = {}
    for task_name, task_values in harness_report["results"].items():
        task_numbers = {
            metric_key: metric_value
            for metric_key, metric_value in task_values.items()
            if "," in metric_key and isinstance(metric_value, int | float)
        }
        task_metrics = {}
        for metric_key, metric_value in task_numbers.items():
            metric_name, _, filter_name = metric_key.partition(",")
            if not metric_name.endswith("_stderr"):
                stderr = task_numbers.get(f"{metric_name}_stderr,{filter_name}")
                task_metrics[metric_key] = {"value": metric_value, "stderr": stderr}
        sample_counts = harness_report["n-samples"].get(task_name, {})
        task_results[task_name] = {
            "metrics": task_metrics,
            "samples": sample_counts.get("effective", task_values.get("sample_len")),
            "shots": harness_report["n-shot"].get(task_name),
            "limit": document_limit,
            "version": harness_report["versions"].get(task_name),
            "lm_eval": harness_report["lm_eval_version"],
        }
    return task_results


def _find_tasks(manager_class: Any, task_names: Sequence[str], task_folder: Path | None) -> Any:
    """Index the tasks; the library's own, thousands of files, are read only if one is meant."""
    if not task_names:
        raise UserError("no task is named; give the names of tasks or groups")
    if task_folder is not None and not task_folder.is_dir():
        raise UserError(f"{task_folder} is no folder with tasks")
    include_path = None if task_folder is None else str(task_folder)
    task_manager = manager_class(include_path=include_path, include_defaults=False)
    if any(task_name not in task_manager.all_tasks for task_name in task_names):
        task_manager = manager_class(include_path=include_path)
    for task_name in task_names:
        if task_name not in task_manager.all_tasks:
            similar_names = difflib.get_close_matches(task_name, task_manager.all_tasks, SHOWN_TASKS)
            raise UserError(
                f"lm-evaluation-harness knows no task {task_name!r}; of like spelling: "
                f"{', '.join(similar_names) or 'none'}"
            )
    return task_manager
