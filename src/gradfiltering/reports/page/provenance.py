"""Where a run comes from: what was asked for, what made it, how to do it again, whom to cite."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradfiltering.reports import citations
from gradfiltering.reports.page.folder import RunFolder

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[3]
# Where a run writes and what it shows decides no result.
PLACES = re.compile(r"(run_dir|default_root_dir|store\.path|progress|debug|logger)(\.|$)")


def differences(run: RunFolder) -> list[tuple[str, str, str]] | None:
    """Option, value and default of everything in which the run differs; None where the defaults are not at hand."""
    defaults = default_config()
    if defaults is None:
        return None
    own, other = dict(_flat(run.config)), dict(_flat(defaults))
    names = [name for name in dict.fromkeys([*own, *other]) if not PLACES.match(name)]
    return [
        (name, str(own.get(name, "–")), str(other.get(name, "–"))) for name in names if own.get(name) != other.get(name)
    ]


def default_config() -> dict[str, Any] | None:
    """What `python train.py` would run with, of the checkout this code stands in; None outside one."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    folder = CHECKOUT / "conf"
    if not (folder / "train.yaml").is_file():
        return None
    # A run that goes on has a Hydra of its own; it is put back afterwards.
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            config = compose("train", overrides=["run_dir=-"])
    finally:
        GlobalHydra.instance().hydra = running
    found = OmegaConf.to_container(config, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def command(run: RunFolder) -> str:
    """What does the run again, at the same commit."""
    asked = run.environment.get("overrides", [])
    if not any(one.startswith("seed=") for one in asked):
        asked = [*asked, f"seed={run.environment['seed']}"]
    lines = []
    commit = str(run.environment.get("git_commit") or "")
    if commit:
        lines.append(f"git checkout {commit.removesuffix('-dirty')}")
    lines.append(shlex.join(["python", "train.py", *asked]))
    return "\n".join(lines)


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """Commit, seed, data, versions and machine in words."""
    about, data = run.environment, run.summary.get("data", {})
    commit = str(about.get("git_commit") or "not a checkout")
    known = run.texts.about
    rows = [
        ("commit", commit.replace("-dirty", " with local changes")),
        ("seed", str(about["seed"])),
        ("data", known.get("origin", str(run.config.get("data", {}).get("_target_", "")))),
        ("fingerprint of the data", known.get("fingerprint", "not kept by this run")),
        ("rows", f"{run.total:,}, of which {data.get('unscored', 0):,} not scored"),
        ("Python", str(about.get("python"))),
        ("packages", ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items())),
        ("machine", f"{about.get('device')}, {about.get('cpus')} CPUs, {about.get('platform')}"),
    ]
    return rows


def bibtex(run: RunFolder) -> str:
    """Entries of what the run used."""
    return citations.bibtex(run.config, run.summary)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
