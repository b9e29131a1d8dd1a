"""The plan of a run in plain words: before it starts as a table, at its end beside what it took."""

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradfiltering.runs.screen_words import describe_duration, describe_stage
from gradfiltering.runs.sizes import format_bytes

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a plan: for each stage its work line by line, and the sums."""
    table = Table(box=box.SIMPLE_HEAD, title="Plan of this run", title_justify="left", title_style="bold")
    for heading in ("work", "rows", "tokens", "padded", "operations", "time"):
        table.add_column(heading, justify="left" if heading == "work" else "right", no_wrap=heading != "work")
    for stage in plan["stages"]:
        name = describe_stage(stage["name"])
        memory_text = f"{format_bytes(stage['peak_bytes'])} of memory, {format_bytes(stage['disk_bytes'])} on disk"
        stage_label = Text.assemble((name, "bold"), f"\n{memory_text}")
        operations = format_operations(stage["operations"])
        table.add_row(stage_label, "", "", "", operations, format_seconds(stage["seconds"]))
        for item in stage["work"]:
            counts = [item["counts"][name] for name in ("rows", "tokens", "padded")]
            numbers = [f"{count:,}" if count else "" for count in counts]
            cost = [format_operations(item["operations"]), format_seconds(item["seconds"])]
            table.add_row(Text(item["description"]), *numbers, *(["in the cache", ""] if item["reused"] else cost))
        for note in stage["notes"]:
            table.add_row(Text(note, "italic"))
    console.print(table)
    for line in describe_plan(plan):
        console.print(Text(line))


def describe_plan(plan: Mapping[str, Any]) -> list[str]:
    """Say in a few sentences what a run takes."""
    rows_text = f"{plan['rows']:,} rows"
    if plan["rows"] < plan["pool_rows"]:
        rows_text += f" of {plan['pool_rows']:,}"
    time_text, memory_text = format_seconds(plan["seconds"]), format_bytes(plan["peak_bytes"])
    disk_text = format_bytes(plan["disk_bytes"])
    lines = [
        f"{time_text} in all for {rows_text}, {format_operations(plan['operations'])} operations, {memory_text} of "
        f"memory at the peak, {disk_text} on the disk; loading, data and page are not in it."
    ]
    if plan["members"]:
        members_text = f"{plan['members']} member{'s' if plan['members'] > 1 else ''}"
        lines.append(
            f"{members_text} on a model with {_format_weights(plan['parameters'])} weights in its matrix products."
        )
    estimated = {item["estimated_from"] for stage in plan["stages"] for item in stage["work"]} - {""}
    if plan["calibration_seconds"] or plan.get("measured_at") is not None:
        lines.append(
            f"Times are from {describe_calibration(plan)} on this machine ({plan['device']})"
            + (f"; of what is not loaded yet from {', '.join(sorted(estimated))}." if estimated else ".")
        )
    lines += [describe_saving(saving, plan["seconds"]) for saving in plan.get("savings", [])]
    return lines + ([describe_fleet(plan["fleet"])] if plan.get("fleet") else [])


def describe_fleet(cost: Mapping[str, Any]) -> str:
    """Say what a run costs on a fleet: time, GPU hours, money, bytes on the disk and over the network."""
    fleet, seconds = cost["fleet"], cost["seconds"]
    nodes_text = "one machine" if fleet["nodes"] == 1 else f"{fleet['nodes']} machines"
    speed_text = "each as fast as this device"
    if fleet["peak_tflops"] is not None:
        speed_text = f"{fleet['peak_tflops']:g}·10^12 operations a second each, {fleet['utilisation']:.0%} of them used"
    hours_text = ""
    if cost["gpu_hours"] is not None:
        hours_text = f", {cost['gpu_hours']:,.2f} GPU hours"
        if cost["price"] is not None:
            hours_text += f", {cost['price']:,.2f} in money at {fleet['price_per_gpu_hour']:g} an hour"
        if seconds:
            hours_text += f"; {cost['exchange_seconds'] / seconds:.1%} of the time in exchanges of gradients"
    bytes_text = f"{format_bytes(cost['disk_bytes'])} on the shared disk, {format_bytes(cost['exchanged_bytes'])} sent"
    if fleet["nodes"] > 1:
        bytes_text += f", {format_bytes(cost['network_bytes'])} over the network with what nodes read and write"
    return (
        f"On {fleet['gpus']} GPUs of {nodes_text} ({speed_text}): {format_seconds(seconds)}{hours_text}; {bytes_text} "
        "(docs/scale.md)."
    )


def _format_weights(weight_count: int) -> str:
    return f"{weight_count / 1e6:,.1f} million" if weight_count >= 100_000 else f"{weight_count:,}"


def describe_saving(saving: Mapping[str, Any], run_seconds: float) -> str:
    """Say how long a run would take with a change, how to ask for it, and what changes by it.

    Args:
        saving: of the plan.
        run_seconds: of the run without the change.
    """
    values = saving["values"]
    if saving["change"] == "ifd":
        change_text = "scorer=ifd"
        effect_text = (
            "losses of the base model in the place of gradients; on SmolLM2 the rows of neither trained better than "
            "random ones (docs/findings.md)"
        )
    elif saving["change"] == "online":
        change_text = "ensemble.collect=online"
        effect_text = (
            "norms of the training steps instead of passes of their own, which ranked the rows differently on SmolLM2 "
            "(docs/findings.md)"
        )
    elif saving["change"] == "upper_layers":
        change_text = f"ensemble.lora.layers=last_{values['layers']}"
        effect_text = (
            "adapters in the last quarter of the layers only, which turned the ranking over on SmolLM2 "
            "(docs/findings.md)"
        )
    else:
        change_text = f"epochs=updates or ensemble.train_rows={values['train_rows']}"
        effect_text = (
            f"{values['late']} updates instead of {values['updates']:,} (after {values['early']} and {values['late']}, "
            "or epochs of fewer rows); all rows are scored"
        )
    seconds_left = max(0.0, run_seconds - saving["seconds"])
    return f"{format_seconds(seconds_left)} instead of {format_seconds(run_seconds)} with {change_text}: {effect_text}."


def describe_calibration(plan: Mapping[str, Any]) -> str:
    """Say what the times of a plan are from: work that was timed for it, or for an earlier run, and how long ago."""
    if plan.get("measured_at") is None:
        return f"{plan['calibration_seconds']:.0f} s of the work itself"
    age_text = format_seconds(max(0.0, time.time() - plan["measured_at"]))
    return f"work that an earlier run timed {age_text} ago (the cache keeps it; plan.fresh=true times it anew)"


def describe_accuracy(run_summary: Mapping[str, Any]) -> str:
    """Say how long the stages of a finished run were planned to take, and took; empty where nothing was timed."""
    parts = [
        f"{describe_stage(stage['name'])} {format_seconds(stage['actual_seconds'])}, planned "
        f"{format_seconds(stage['seconds'])}"
        for stage in run_summary.get("plan", {}).get("stages", [])
        if stage.get("seconds") and stage.get("actual_seconds") is not None
    ]
    return "; ".join(parts)


def format_seconds(seconds: float | None) -> str:
    """Write a duration, in whole seconds where it is short; or `not timed`."""
    if seconds is None:
        return "not timed"
    if seconds < 10:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else "< 1 s"
    return describe_duration(seconds)


def format_operations(operations: int) -> str:
    """Write a number of operations as a power of ten; nothing for none."""
    if operations < 1000:
        return str(operations or "")
    mantissa, _, exponent = f"{operations:.1e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"
