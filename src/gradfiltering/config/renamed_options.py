"""Options of earlier versions, and what took their place."""

import re
from collections.abc import Sequence

from gradfiltering.errors import UserError

WANDB_OPTIONS = ("project", "entity", "name", "group", "id", "tags", "offline", "artifacts", "settings", "save_dir")

# Option (of any depth below it, where it ends in a dot) -> what to give instead.
RENAMED_OPTIONS = {
    "store.": "cache.",
    "proxy.objective.": "objective.",
    "proxy/objective.": "objective.",
    "proxy.backbone.": "proxy.base_model.",
    "target.backbone.": "target.base_model.",
    "judge.judge.backbone.": "judge.judge.base_model.",
    "judge.asking.": "judge.conversation.",
    "target.lead.checkpoint_minutes": "target.tuning.checkpoint_minutes",
    **{f"logger.{option_name}.": f"logger.wandb.{option_name}." for option_name in WANDB_OPTIONS},
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
        option_name, equals_sign, option_value = override.lstrip("+~").partition("=")
        for old_name, new_name in RENAMED_OPTIONS.items():
            if f"{option_name}.".startswith(old_name):
                renamed_option = f"{option_name}.".replace(old_name, new_name, 1).rstrip(".")
                renamed_override = f"{renamed_option}{equals_sign}{option_value}"
                raise UserError(f"{option_name} is called {renamed_option} now; give {renamed_override}")
        for chosen_name in re.split(r"[,\[\]]", option_value):
            if replacing_option := REMOVED_CHOICES.get(f"{option_name}={chosen_name.strip()}"):
                raise UserError(f"{option_name}={chosen_name.strip()} is gone; give {replacing_option}")
