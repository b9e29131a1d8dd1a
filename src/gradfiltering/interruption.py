"""Stopping by Ctrl-C or SIGTERM: one sentence on the screen, and the exit status that shells expect."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED_MESSAGE = "stopped; what is finished is saved in the cache, and the same command goes on from there"
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_SECONDS = 5  # for the work to end, before another signal interrupts the ending, too
REPEAT_SECONDS = 0.1  # between an interrupt that was dropped and the next

_received_signals: list[int] = []
_raised_at: list[float] = []  # seconds of the monotonic clock


def was_stopped() -> bool:
    """Return True once this process was asked to stop."""
    return bool(_received_signals)


def _stop(signal_number: int, frame: FrameType | None) -> None:
    """Raise for the first signal, and for one that comes while the end takes long; others do not disturb the end."""
    current_time = time.monotonic()
    is_first = not _received_signals
    _received_signals.append(signal_number)
    if is_first or current_time - _raised_at[-1] > PATIENCE_SECONDS:
        _raised_at.append(current_time)
        raise KeyboardInterrupt


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Stop again where Python dropped the interrupt, as it does when the signal comes within a `__del__`."""
    if not (was_stopped() and issubclass(unraisable.exc_type, KeyboardInterrupt)):
        sys.__unraisablehook__(unraisable)
        return
    _raised_at[:] = [-math.inf]
    repeat_timer = threading.Timer(REPEAT_SECONDS, os.kill, (os.getpid(), _received_signals[0]))
    repeat_timer.daemon = True  # from another thread, as an error of this function would be dropped, too
    repeat_timer.start()


@contextmanager
def ending_in_one_sentence(is_quiet: bool = False) -> Iterator[None]:
    """End the process with 130 (Ctrl-C) or 143 (SIGTERM) and one sentence, however the code inside met the signal.

    Args:
        is_quiet: leave the sentence to another process.
    """
    _received_signals.clear()
    _raised_at.clear()
    in_main_thread = threading.current_thread() is threading.main_thread()
    earlier_handlers = {number: signal.signal(number, _stop) for number in STOPPING_SIGNALS} if in_main_thread else {}
    earlier_hook, sys.unraisablehook = sys.unraisablehook, _raise_again
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
        sys.unraisablehook = earlier_hook
        for number, earlier_handler in earlier_handlers.items():
            signal.signal(number, earlier_handler)
