"""Where a run comes from: what was asked for, what made it, how to do it again, whom to cite."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradfiltering.report.page.folder import RunFolder

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[3]
# Where a run writes and what it shows decides no result.
PLACES = re.compile(r"(run_dir|default_root_dir|store\.path|progress|debug|logger)(\.|$)")
# What a word in the configuration's targets stands for in methods.bib.
CITED = {
    "scorers.ifd": "superfiltering",
    "scorers.el2n": "el2n",
    "scorers.grad_norm": "el2n",
    "scorers.learnability": "learnability",
    "scorers.perplexity_middle": "perplexity",
    "scorers.length.": "length",
    "selectors.facility_location": "superfiltering",
    "selectors.two_stage": "superfiltering",
    "selectors.k_center": "k_center",
    "selectors.spice": "spice",
    "judge.openai_judge": "judging",
    "judge.local_judge": "judging",
    "judge.replay": "judging",
}
MODELS = {"gpt2": "gpt2", "llama-2": "llama2", "llama2": "llama2"}
DATASETS = {"alpaca[-_]gpt4": "alpaca_gpt4", "alpaca(?![-_]gpt4)": "alpaca"}


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
    """Entries of the methods that the run used, the method of this project first."""
    entries = {key: entry for entry in _entries() for key in re.findall(r"^@\w+{(\w+),", entry)}
    return "\n\n".join(entries[key] for key in dict.fromkeys(_cited(run)))


def _cited(run: RunFolder) -> Iterator[str]:
    yield "gradfiltering"
    if run.log is not None or run.curves:
        yield "lora"
    parts = {name: run.config.get(name) for name in ("scorer", "selector", "judge")}
    if not run.summary.get("pws"):
        parts.pop("judge")
    targets = [str(value) + "." for name, value in _flat(parts) if name.endswith("_target_")]
    loss_ratio = ("scorer.ratio", "loss") in _flat({"scorer": run.config.get("scorer")})
    for word, key in CITED.items():
        if any(f"gradfiltering.{word}" in target for target in targets):
            yield "cherry" if word == "scorers.ifd" and loss_ratio else key
    used = {"proxy": run.config.get("proxy")} | ({"target": run.config.get("target")} if run.curves else {})
    models = [str(value).lower() for name, value in _flat(used) if name.endswith("model")]
    for word, key in MODELS.items():
        if any(word in model for model in models):
            yield key
    named = [(name, value) for name, value in _flat({"data": run.config.get("data")}) if value is not None]
    words = " ".join(str(value) for name, value in named if name.endswith((".name", ".path"))).lower()
    for word, key in DATASETS.items():
        if re.search(word, words):
            yield key
    if run.summary.get("pws"):
        yield "bootstrap"


def _entries() -> list[str]:
    return (HERE / "methods.bib").read_text("utf-8").strip().split("\n\n")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
