"""The one error a user is meant to read, and how it is shown."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can mend: the message names what is wrong, where, and what to change.

    The command line prints it without a stack trace; anything else that is raised is a defect of this project and keeps
    its trace.
    """


@contextmanager
def plain_words(debug: bool = False) -> Iterator[None]:
    """Prints a `UserError` in plain words and exits with 1; with `debug` it passes as it is."""
    try:
        yield
    except UserError as error:
        if debug:
            raise
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True).print(Text.assemble(("error  ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(1)
