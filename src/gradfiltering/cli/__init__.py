"""The command `gradfiltering`: run experiments, and work with what earlier runs left."""

import sys
from collections.abc import Sequence

from gradfiltering.interruption import ending_in_one_sentence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; whatever follows `run` goes to Hydra unread.

    Args:
        arguments: what follows the name of the command; None for those that this process was started with.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["run"]:
        with ending_in_one_sentence():  # importing takes a while, and may be interrupted, too
            from gradfiltering.config.launch import launch

        launch(arguments[1:], subcommand="run")
        return
    with ending_in_one_sentence():
        from gradfiltering.cli.commands import app
        from gradfiltering.errors import plain_words

        with plain_words():
            app(arguments, prog_name="gradfiltering")
