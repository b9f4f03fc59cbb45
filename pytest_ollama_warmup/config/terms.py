"""The settings that the work on one model goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.listed_models import GivenBy


class Terms(NamedTuple):
    """On what terms models are prepared; durations in seconds, *keep_alive_s* -1 is no limit."""

    pull: str = "auto"
    warm: str = "load"
    keep_alive_s: float = 600.0
    keep_alive_asked: bool = False
    """Whether the user has given it, and not only left it as it is."""
    comes_back_s: float = 10.0
    """How long a server that went away in a pull may take to come back."""
    stall_s: float = 25.0
    load_timeout_s: float = 900.0
    ci: bool = False
    aliases: tuple[str, ...] = ()
    """The names of those that are defined: a model that is not found may be a slip of one."""

    def may_pull(self, given_by: GivenBy) -> bool:
        """Whether to download a model that *given_by* lists: nothing is downloaded by surprise."""
        if self.pull == "auto":
            return self.ci or given_by in ("option", "environment")
        return self.pull in ("missing", "always")
