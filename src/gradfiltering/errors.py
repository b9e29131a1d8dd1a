"""The one error a user is meant to read."""


class UserError(ValueError):
    """Something the user can mend: the message names what is wrong, where, and what to change.

    `train.py` and the command-line modules print it without a stack trace; anything else that is raised is a defect
    of this project and keeps its trace.
    """
