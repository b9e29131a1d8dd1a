"""Words on the screen: what a stage does, and how long something takes."""

# Stage in the summary -> what it does, on the screen.
STAGE_WORDS = {
    "libraries": "loading libraries",
    "data": "reading the rows",
    "judge_check": "trying the judge on labelled pairs",
    "base_model": "loading the proxy model",
    "base_model_passes": "measuring rows without adapters",
    "reference": "measuring both answers under the base model",
    "proxy": "training the ensemble and measuring rows",
    "heldout_member": "measuring the held-out loss with one more member",
    "influence": "comparing the rows' gradients with the task's",
    "score": "scoring the rows",
    "select": "selecting rows",
    "diagnostics": "diagnosing scores and selection",
    "target": "training the target model",
    "judge": "answering prompts and judging the answers",
    "report": "writing the page",
}


def describe_stage(stage_name: str) -> str:
    """Return what a stage does, in words."""
    return STAGE_WORDS.get(stage_name, stage_name.replace("_", " "))


def describe_duration(seconds: float) -> str:
    """Write a duration as people say it: `45 s`, `12 min`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def describe_time_left(seconds: float) -> str:
    """Write a time left, which nobody knows to a tenth of a second."""
    return f"{describe_duration(seconds) if seconds >= 10 else f'{max(1.0, seconds):.0f} s'} left"
