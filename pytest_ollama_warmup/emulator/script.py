"""The script of an emulated Ollama: its models, its faults, and how it refuses a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_ollama_warmup.ollama.names import ModelName

if TYPE_CHECKING:
    from collections.abc import Collection

ANSWER = "I am an emulator, not a model, sorry."
# What the server says with 503.
BUSY = "server busy, please try again.  maximum pending requests exceeded"


class Refusal(Exception):
    """An answer ``{"error": text}`` with an HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text


class ConnectionDropped(Exception):
    """The connection breaks, as when a server is killed."""


class ClientGone(Exception):
    """The client has closed its connection: nobody waits for this work any more."""


@dataclass(slots=True)
class Fault:
    """What the next requests get instead of their answer, or of its end.

    *times* is how many requests; None is all. An empty *path* is any.
    """

    path: str = ""
    times: int | None = 1
    error: tuple[int, str] | None = None
    """The status and the text of an error in place of the answer."""
    cut_after: int | None = None
    """How many parts of a streamed answer are sent before the connection breaks."""


@dataclass(slots=True)
class ScriptedModel:
    """A model as the emulator plays it: times in seconds, sizes in bytes.

    *load_s* is how long a load takes, and *eval_s* an *answer*. *pull_rate* is in bytes a second,
    None is at once. *digest* is bare hex and made from the name where it is empty; models with
    equal *weights* (empty: the digest) share one runner. *num_ctx* is the parameter of its
    Modelfile, None where that has none.
    """

    name: str
    size: int = 1_000_000
    present: bool = False
    in_registry: bool = True
    pull_rate: float | None = None
    load_s: float = 0.0
    eval_s: float = 0.0
    answer: str = ANSWER
    capabilities: Collection[str] = ("completion",)
    digest: str = ""
    weights: str = ""
    context_length: int = 32768
    num_ctx: int | None = None
    remote_host: str | None = None
    pull_error: str | None = None
    """What a pull ends with, as an error line inside HTTP 200."""
    pull_cut: bool = False
    """Whether a pull's stream ends half-way, without a word."""
    pull_drop_at: int | None = None
    """The byte at which the connection breaks."""
    pull_stall_at: int | None = None
    """The byte at which a download stands still."""
    pull_stall_s: float | None = None
    """How long it does; None is for ever."""
    pull_retry_s: float = 30.0
    """After how long the server itself begins a stalled download anew, without what it had."""
    pull_faults: int | None = None
    """How many more pulls meet the faults above; None is all."""
    load_error: str | None = None
    """What each load ends with, as HTTP 500."""
    damaged: bool = False
    """Whether it cannot generate, although ``/api/show`` says so."""
    busy: int = 0
    """How many load requests are turned away with 503 first."""


def parse_name(text: str) -> ModelName:
    """Read a model's name.

    Raises:
        Refusal: 400, no valid name.
    """
    try:
        return ModelName.parse(text)
    except ValueError:
        raise Refusal(400, "invalid model name") from None
