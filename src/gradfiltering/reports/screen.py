"""What the user sees at the start and at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SOURCES_SHOWN = 20
FILES = {
    "report.html": "what was chosen and why: open it in a browser",
    "subset.jsonl": "the chosen rows, ready to train on",
    "scores.parquet": "score and rank of every row",
    "unscored.parquet": "rows without a score, with the reason",
    "verdicts.jsonl": "every pairwise verdict",
    "summary.json": "all numbers of this run",
}


def open_run(folder: str, console: Console) -> None:
    """Says that a run has begun and where it writes, before anything that takes long to import."""
    console.print(Text.assemble(("gradfiltering", "bold"), f" writes to {folder}; loading libraries …"), soft_wrap=True)


def show(summary: Mapping[str, Any], folder: Path, console: Console) -> None:
    """Prints stages, selection, diagnostics with their warnings, PWS, and where the files are."""
    console.rule("[bold]gradfiltering")
    console.print(_stages(summary))
    if "positive_drop_share" in summary["diagnostics"]:
        console.print(_ensemble(summary["diagnostics"]))
    if "selection" in summary:
        console.print(_selection(summary))
    if "sources" in summary["diagnostics"]:
        console.print(_sources(summary["diagnostics"]["sources"]))
    if "truth" in summary["diagnostics"]:
        console.print(_truth(summary["diagnostics"]["truth"]))
    if "target" in summary:
        console.print(_targets(summary))
    if "pws" in summary:
        console.print(_pws(summary["pws"]))
        # Imported here because it brings numerical libraries along, and the start of a run does without.
        from gradfiltering.reports.verdict_tables import trust_table

        console.print(trust_table(summary["pws"], summary["judge"]))
    for warning in summary["diagnostics"].get("warnings", []):
        console.print(Text.assemble(("warning  ", "bold yellow"), warning))
    console.print(Text.assemble(("Files", "bold"), f" in {folder}"), soft_wrap=True)
    for name, meaning in FILES.items():
        if (folder / name).exists():
            console.print(f"  {name:<18} {meaning}")


def _stages(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Stages", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("peak memory", justify="right")
    table.add_column("")
    for stage in summary["stages"]:
        cost = summary["cost"][stage["name"]]
        reused = "reused" if stage["reused"] else ""
        table.add_row(stage["name"], f"{stage['seconds']:.1f}", f"{cost['peak_bytes'] / 2**20:,.0f} MiB", reused)
    return table


def _ensemble(found: Mapping[str, Any]) -> Table:
    table = Table(title="Proxy ensemble", title_justify="left", show_header=False)
    table.add_row("gradient norm fell for", f"{found['positive_drop_share']:.0%} of rows")
    table.add_row("median relative drop", f"{found['median_relative_drop']:+.3f}")
    ratios = [
        f"{value:.4f} (epoch {epoch})" for epoch, value in found["relative_variance"].items() if value is not None
    ]
    table.add_row("members' disagreement V/G²", ", ".join(ratios) or "one member")
    losses = [f"{name}: {value:.3f}" for name, value in found["heldout_loss"].items() if value is not None]
    table.add_row("held-out loss", ", ".join(losses) or "nothing held out")
    return table


def _selection(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Selection", title_justify="left", show_header=False)
    chosen, data, found = summary["selection"], summary["data"], summary["diagnostics"]
    table.add_row("rows", f"{chosen['selected']} of {data['examples']} chosen, {data['unscored']} not scored")
    table.add_row("how", f"{chosen['selector']} by {chosen['scorer']}" if chosen["scorer"] else chosen["selector"])
    for name, value in found.get("score_spearman", {}).items():
        if value is not None:
            table.add_row(f"Spearman of score and {name}", f"{value:+.2f}")
    return table


def _sources(sources: Mapping[str, Any]) -> Table:
    title = f"Sources (spread over {sources['effective']:.0%} as many as the pool)"
    table = Table("source", title=title, title_justify="left")
    for heading in ("pool", "chosen"):
        table.add_column(heading, justify="right")
    shares = sorted(sources["share"].items(), key=lambda item: -item[1]["selected"])
    for name, share in shares[:SOURCES_SHOWN]:
        table.add_row(Text(name), f"{share['pool']:.1%}", f"{share['selected']:.1%}")
    return table


def _truth(truth: Mapping[str, Any]) -> Table:
    table = Table(title="Planted truth", title_justify="left", caption=_auc(truth["auc"]), caption_justify="left")
    for heading in ("kind", "pool", "chosen", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for kind, share in truth["share"].items():
        interval = f"{share['low']:.1%} – {share['high']:.1%}"
        table.add_row(kind, f"{share['pool']:.1%}", f"{share['selected']:.1%}", interval)
    return table


def _auc(values: Mapping[str, Mapping[str, float]]) -> str:
    parts = [f"{name} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for name, v in values.items()]
    return "AUC of clean over planted: " + ", ".join(parts) if parts else ""


def _targets(summary: Mapping[str, Any]) -> Table:
    table = Table(title="Target models", title_justify="left")
    metrics = summary.get("metrics", {})
    names = sorted({name for sets in metrics.values() for values in sets.values() for name in values})
    shown = [name for name in ("exact_match", "chrf") if name in names]
    for heading in ("model", "rows", "steps", "train loss", "held-out", *(name.split("_")[0] for name in shown)):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model, result in summary["target"].items():
        heldout = "–" if result["heldout_loss"] is None else f"{result['heldout_loss']:.3f}"
        cells = [model, str(result["examples"]), str(result["steps"]), f"{result['final_loss']:.3f}", heldout]
        for name in shown:
            values = [sets[name] for sets in metrics.get(model, {}).values() if sets.get(name) is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "–")
        table.add_row(*cells)
    return table


def _pws(pws: Mapping[str, Any]) -> Table:
    table = Table(title="Pairwise winning score of the candidate (1 = on a par)", title_justify="left")
    for heading in ("against", "prompts", "PWS", "interval", "win / tie / loss", "unparsed"):
        table.add_column(heading, justify="left" if heading in ("against", "prompts") else "right")
    for against, sets in pws.items():
        for name, one in sets.items():
            value = "–" if one["value"] is None else f"{one['value']:.3f}"
            interval = "–" if one["low"] is None else f"{one['low']:.3f} – {one['high']:.3f}"
            counts = f"{one['wins']} / {one['ties']} / {one['losses']}"
            table.add_row(against, name, value, interval, counts, str(one["unparsed"]))
    return table
