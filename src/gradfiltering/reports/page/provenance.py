"""Origin of a run: its command, commit, data, versions and options."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from gradfiltering.reports.plan_table import describe_accuracy
from gradfiltering.reports.run_files import RunFiles
from gradfiltering.reports.screen import describe_templates


def format_command(run_files: RunFiles) -> str:
    """Write the command that does the run again, at its commit."""
    overrides = run_files.overrides
    if not any(override.startswith("seed=") for override in overrides):
        overrides = [*overrides, f"seed={run_files.seed}"]
    commit = str(run_files.environment.get("git_commit") or "").removesuffix("-dirty")
    lines = [f"git checkout {commit}"] if commit else []
    return "\n".join([*lines, shlex.join(["python", "train.py", *overrides])])


def list_facts(run_files: RunFiles) -> pd.DataFrame:
    """List commit, seed, data, versions and machine in words."""
    run_environment, data_summary = run_files.environment, run_files.summary.get("data", {})
    commit = str(run_environment.get("git_commit") or "not a checkout")
    package_versions = run_environment.get("packages", {})
    run_facts = {
        "commit": commit.replace("-dirty", " with local changes"),
        "seed": str(run_files.seed),
        "data": run_files.data_facts.get("origin", str(run_files.options("data").get("_target_", ""))),
        "fingerprint of the data": run_files.data_facts.get("fingerprint", "not kept by this run"),
        "rows": f"{run_files.row_count:,}, of which {data_summary.get('unscored', 0):,} not scored",
        "prompt template": describe_templates(run_files.summary) if "templates" in run_files.summary else "not noted",
        "planned time": describe_accuracy(run_files.summary)
        or "not estimated: the run was short, or its results cached",
        "Python": str(run_environment.get("python")),
        "packages": ", ".join(f"{name} {version}" for name, version in package_versions.items()),
        "device": f"{run_environment.get('device')}, {run_environment.get('cpus')} CPUs",
        "platform": str(run_environment.get("platform")),
    }
    return pd.DataFrame({"value": run_facts})


def list_options(run_files: RunFiles) -> pd.DataFrame:
    """List every option of the resolved configuration with its value."""
    return pd.DataFrame({"value": {name: str(value) for name, value in _flatten(run_files.config)}})


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
