"""How much of an answer is read, and for how long: what is no Ollama may never end its answer."""

from __future__ import annotations

from pytest_ollama_warmup.ollama import clock
from pytest_ollama_warmup.text import size

# The largest answer about one model is that of /api/show: its license, template and tensors, some
# hundred kB.
ANSWER_BYTES = 8_000_000
# In a list of all models on a disk each takes 400 to 600 bytes (v0.33): room for 100,000. What a
# suite's own warm-up request embeds may be as large.
LARGE_BYTES = 64_000_000
# Of one line of a pull, which has 150.
LINE_BYTES = 1_000_000


class TooSlow(TimeoutError):
    """An answer has not ended within its time."""


class TooLong(ValueError):
    """An answer is larger than any of Ollama's."""


class Limit:
    """The time, in seconds, and the size, in bytes, that are left of an answer.

    Time passes from the start, whatever comes meanwhile; all counts that comes over the network.
    """

    def __init__(self, limit_s: float, most: int = ANSWER_BYTES) -> None:
        self._limit_s, self.most = limit_s, most
        self.renew()

    def renew(self) -> None:
        """Begin again, as with the next line of a stream."""
        self.came, self._until = 0, clock.monotonic() + self._limit_s

    def left_s(self) -> float:
        """Return the time that is left.

        Raises:
            TooSlow: none is.
        """
        left_s = self._until - clock.monotonic()
        if left_s <= 0:
            raise TooSlow
        return left_s

    def count(self, number: int) -> None:
        """Hear that *number* bytes have come.

        Raises:
            TooLong: that is more than an answer of Ollama has.
        """
        self.came += number
        if self.came > self.most:
            raise TooLong(f"more than {size(self.most)} without an end")
