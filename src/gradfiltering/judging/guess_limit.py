"""A limit on wrong passwords within a span of time."""

from collections import deque
from collections.abc import Callable


class GuessLimit:
    """Counts wrong passwords, by the address they come from and in all.

    Args:
        per_address: wrong passwords that an address may give within the span.
        in_all: wrong passwords that all addresses together may give.
        span_seconds: length of the span.
        clock: gives the time in seconds.
    """

    def __init__(self, per_address: int, in_all: int, span_seconds: float, clock: Callable[[], float]):
        self.per_address = per_address
        self.in_all = in_all
        self.span_seconds = span_seconds
        self._clock = clock
        self._wrong_guesses: deque[tuple[float, str]] = deque(maxlen=in_all)  # time and address, oldest first

    def wait_seconds(self, address: str) -> float:
        """Return how long an address has to wait for its next guess; 0 where it has not."""
        current_time = self._clock()
        while self._wrong_guesses and self._wrong_guesses[0][0] <= current_time - self.span_seconds:
            self._wrong_guesses.popleft()
        own_times = [guess_time for guess_time, guess_address in self._wrong_guesses if guess_address == address]
        waits = [0.0]
        if len(own_times) >= self.per_address:
            waits.append(own_times[-self.per_address] + self.span_seconds - current_time)
        if len(self._wrong_guesses) >= self.in_all:
            waits.append(self._wrong_guesses[0][0] + self.span_seconds - current_time)
        return max(waits)

    def add_wrong_guess(self, address: str) -> None:
        """Count a wrong password."""
        self._wrong_guesses.append((self._clock(), address))
