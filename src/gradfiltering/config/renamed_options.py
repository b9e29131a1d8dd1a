"""Options of earlier versions, and what took their place."""

import re
from collections.abc import Sequence

from gradfiltering.errors import UserError

# Option (of any depth below it, where it ends in a dot) -> what to give instead.
RENAMED_OPTIONS = {
    "store.": "cache.",
    "proxy.backbone.": "proxy.base_model.",
    "target.backbone.": "target.base_model.",
    "judge.backbone.": "judge.base_model.",
    "proxy.adaptive.": "adaptive.",
    "target.lead.checkpoint_minutes": "target.tuning.checkpoint_minutes",
}

# Removed `group=option` -> what to give instead.
REMOVED_CHOICES = {
    "gradients=loop": "gradients=vmap (the same numbers, faster)",
    "epochs=e0_e1": "epochs.early=0 epochs.late=1",
    "epochs=e0_e2": "epochs.early=0 epochs.late=2",
    "epochs=e2_e3": "epochs.early=2 epochs.late=3",
}


def explain_renamed(overrides: Sequence[str]) -> None:
    """Refuse options that have another name now.

    Args:
        overrides: words of the command line.

    Raises:
        UserError: names the option and its new name.
    """
    for override in overrides:
        name, separator, value = override.lstrip("+~").partition("=")
        for old_name, new_name in RENAMED_OPTIONS.items():
            if (name + ".").startswith(old_name) or name + "." == old_name:
                renamed = new_name + name[len(old_name) :] if len(name) > len(old_name) else new_name.rstrip(".")
                raise UserError(f"{name} is called {renamed} now; give {renamed}{separator}{value}")
        for choice in re.split(r"[,\[\]]", value):
            if replacement := REMOVED_CHOICES.get(f"{name}={choice.strip()}"):
                raise UserError(f"{name}={choice.strip()} is gone; give {replacement}")
