"""Time as it passes, whatever tests do to their clocks.

freezegun replaces the functions of ``time`` in all modules that hold them, and time-machine
patches them in place; both leave ``clock_gettime`` of the monotonic clock alone (tried on
freezegun 1.5 and time-machine 3.6). With a frozen clock no wait would end.
"""

from __future__ import annotations

import time as _time

# Windows has no clock_gettime. Held by a tuple, where freezegun does not look for it.
_HELD = (_time.monotonic, _time.sleep)

if hasattr(_time, "clock_gettime"):

    def monotonic() -> float:
        """Return seconds of the clock that all processes of a machine share."""
        return _time.clock_gettime(_time.CLOCK_MONOTONIC)
else:

    def monotonic() -> float:
        """Return seconds of the clock that all processes of a machine share."""
        return _HELD[0]()


# Taken when pytest loads its plugins, before any test can freeze it.
_EPOCH = _time.time() - monotonic()


def time() -> float:
    """Return seconds since the epoch."""
    return _EPOCH + monotonic()


def sleep(seconds: float) -> None:
    """Wait that long."""
    _HELD[1](seconds)
