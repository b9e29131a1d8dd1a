"""GradFiltering: select instruction-tuning data by the gradients of a LoRA ensemble, and show the evidence."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradfiltering.api import RowSelection, RunResult, run_experiment, select_rows
    from gradfiltering.errors import UserError

__all__ = ["RowSelection", "RunResult", "UserError", "run_experiment", "select_rows"]

_MODULES = {name: "gradfiltering.api" for name in __all__} | {"UserError": "gradfiltering.errors"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package is quick."""
    from importlib import import_module

    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
