"""A socket for http.client, whose own time-out begins again with each byte that comes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_ollama_warmup.ollama.limits import Limit


class BoundedSocket(socket.socket):
    """A socket that is read within a limit; unlimited until it has one."""

    limit: Limit | None = None

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read, which is all that http.client does.

        Raises:
            TooSlow, TooLong: the limit is reached.
        """
        if self.limit is None:
            return super().recv_into(buffer, nbytes, flags)
        self.settimeout(self.limit.left_s())
        number = super().recv_into(buffer, nbytes, flags)
        self.limit.count(number)
        return number


def bounded(sock: socket.socket, limit: Limit) -> BoundedSocket:
    """Return the connection of *sock*, which is of no use any more, to be read within *limit*."""
    made = BoundedSocket(fileno=sock.detach())
    made.limit = limit
    made.settimeout(limit.left_s())
    return made
