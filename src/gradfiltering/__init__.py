"""GradFiltering: select instruction-tuning data by the gradients of a LoRA ensemble, and show the evidence."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradfiltering.api import RowSelection, RunResult, run_experiment, select_from_log, select_rows
    from gradfiltering.errors import UserError
    from gradfiltering.gradients.per_example import per_example_gradients

__all__ = [
    "RowSelection",
    "RunResult",
    "UserError",
    "per_example_gradients",
    "run_experiment",
    "select_from_log",
    "select_rows",
]

_MODULE_BY_NAME = {
    **dict.fromkeys(
        ("RowSelection", "RunResult", "run_experiment", "select_from_log", "select_rows"), "gradfiltering.api"
    ),
    "UserError": "gradfiltering.errors",
    "per_example_gradients": "gradfiltering.gradients.per_example",
}


def __getattr__(public_name: str) -> Any:
    """Import a public name when it is first used, so that importing the package is quick."""
    from importlib import import_module

    if public_name in _MODULE_BY_NAME:
        return getattr(import_module(_MODULE_BY_NAME[public_name]), public_name)
    raise AttributeError(f"module {__name__!r} has no attribute {public_name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
