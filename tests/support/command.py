"""The installed command, run inside the test process."""

from gradfiltering.cli import main


def run_command(*arguments: object) -> int:
    """`gradfiltering arguments`; returns the exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    return 0
