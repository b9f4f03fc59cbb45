"""Everything that can go wrong.

WarmupError
├── BadSetting            a value that the user gave cannot be used; also a ValueError
│   ├── Conflict
│   ├── BadHost
│   ├── MissingVariable
│   ├── BadSpec
│   └── BadMark
│       └── ParameterWithoutIndirect
├── NoModelNamed          a test asks for its model, and nothing says which
├── OllamaNotFound        a server is to be started, and its program is nowhere
├── ServerError           nothing can be had from this server
│   ├── ServerUnreachable
│   ├── NotOllama
│   ├── ProxyAnswered
│   ├── AccessDenied
│   ├── TlsFailed
│   ├── Aborted
│   ├── CannotAsk
│   └── ServerStartFailed  the one that is started for the run; with the end of its log
├── ModelError            one model cannot be made ready
│   ├── NotPulled
│   ├── UnknownModel
│   ├── OtherDigest
│   ├── LacksCapability
│   ├── PullFailed
│   └── LoadFailed
├── ApiError              one answer that is an error; the caller says what it means
└── WaitedTooLong         another process holds the work and shows no progress

A class declares its fields, which are its parameters in that order, and its message. What follows
from an error follows from its class, its *cause* and *failed_by*, never from the text. The first
line of a text says what is wrong and why, and ends in the section of docs/fix.md that explains it;
the next one says what to do about it.
"""

from __future__ import annotations

from pytest_ollama_warmup.errors.base import (
    Cause,
    FailedBy,
    NoAnswer,
    WarmupError,
    words_of,
)
from pytest_ollama_warmup.errors.model import (
    CAPABILITIES,
    ApiError,
    LacksCapability,
    LoadFailed,
    ModelError,
    NotPulled,
    OtherDigest,
    PullFailed,
    UnknownModel,
    WaitedTooLong,
)
from pytest_ollama_warmup.errors.server import (
    Aborted,
    AccessDenied,
    CannotAsk,
    NotOllama,
    OllamaNotFound,
    ProxyAnswered,
    ServerError,
    ServerStartFailed,
    ServerUnreachable,
    TlsFailed,
)
from pytest_ollama_warmup.errors.usage import (
    BadHost,
    BadMark,
    BadSetting,
    BadSpec,
    Conflict,
    MissingVariable,
    NoModelNamed,
    ParameterWithoutIndirect,
)

__all__ = [
    "CAPABILITIES",
    "Aborted",
    "AccessDenied",
    "ApiError",
    "BadHost",
    "BadMark",
    "BadSetting",
    "BadSpec",
    "CannotAsk",
    "Cause",
    "Conflict",
    "FailedBy",
    "LacksCapability",
    "LoadFailed",
    "MissingVariable",
    "ModelError",
    "NoAnswer",
    "NoModelNamed",
    "NotOllama",
    "NotPulled",
    "OllamaNotFound",
    "OtherDigest",
    "ParameterWithoutIndirect",
    "ProxyAnswered",
    "PullFailed",
    "ServerError",
    "ServerStartFailed",
    "ServerUnreachable",
    "TlsFailed",
    "UnknownModel",
    "WaitedTooLong",
    "WarmupError",
    "words_of",
]
