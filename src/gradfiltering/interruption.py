"""Stopping by Ctrl-C or SIGTERM: one sentence on the screen, and the exit status that shells expect."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_MESSAGE = "stopped; what is finished is saved in the cache, and the same command goes on from there"
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received_signals: list[int] = []


def was_stopped() -> bool:
    """Return True once this process was asked to stop."""
    return bool(_received_signals)


def _stop(signal_number: int, frame: FrameType | None) -> None:
    _received_signals.append(signal_number)
    if len(_received_signals) == 1:  # whoever asks again does not disturb the end
        raise KeyboardInterrupt


@contextmanager
def ending_in_one_sentence(is_quiet: bool = False) -> Iterator[None]:
    """End the process with 130 (Ctrl-C) or 143 (SIGTERM) and one sentence, however the code inside met the signal.

    Args:
        is_quiet: leave the sentence to another process.
    """
    _received_signals.clear()
    in_main_thread = threading.current_thread() is threading.main_thread()
    earlier_handlers = {number: signal.signal(number, _stop) for number in STOPPING_SIGNALS} if in_main_thread else {}
    try:
        yield
    except BaseException as ending:
        is_interrupt = isinstance(ending, KeyboardInterrupt) or isinstance(ending.__context__, KeyboardInterrupt)
        if not was_stopped() and not is_interrupt:
            raise
        if not is_quiet:
            print(STOPPED_MESSAGE, file=sys.stderr)
        sys.exit(128 + (_received_signals[0] if was_stopped() else int(signal.SIGINT)))
    finally:
        for number, earlier_handler in earlier_handlers.items():
            signal.signal(number, earlier_handler)
