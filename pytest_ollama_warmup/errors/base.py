"""What all errors have: fields that are declared once, a message, a cause as a value."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, dataclass_transform, get_args

from pytest_ollama_warmup.text import explained

FailedBy = Literal["server", "model"]
# Why nothing answers. All but the last three are the words of the message, too.
NoAnswer = Literal[
    "connection refused",
    "no connection",
    "connection lost",
    "no answer",
    "no complete answer",
    "host name not found",
    "proxy",
    "proxy setting",
    "no server",
]
# Of these another model would fail, too.
OfServer = (
    NoAnswer
    | Literal[
        "bad setting",
        "no Ollama",
        "not Ollama",
        "access refused",
        "no TLS",
        "interrupted",
        "cannot ask",
        "start failed",
        "port taken",
        "gateway",
        "server busy",
        "server lost",
        "server silent",
    ]
)
OfModel = Literal[
    "not pulled",
    "unknown model",
    "other digest",
    "missing capability",
    "invalid name",
    "registry unreachable",
    "registry busy",
    "registry login",
    "registry without TLS",
    "disk full",
    "outdated server",
    "stalled",
    "damaged download",
    "interrupted download",
    "damaged weights",
    "out of memory",
    "no text model",
    "runner lost",
    "waited too long",
    "other",
]
Cause = OfServer | OfModel
# Where the cause, and not the kind of error, says what to do.
_ANCHOR_BY_CAUSE: dict[Cause, str] = {"gateway": "gateway-answered", "port taken": "port-taken"}
_OF_SERVER = {cause for part in get_args(OfServer) for cause in get_args(part)}


@dataclass_transform(eq_default=False)
class WarmupError(Exception):
    """Base of all errors of this package.

    A class declares its fields as annotations: they are its parameters, after those of its base.
    The section of docs/fix.md that explains it has the class's name: ``#not-pulled``.
    All go to ``Exception`` by position, so that each error can be pickled.
    """

    cause: Cause = "other"
    names_host: ClassVar[bool] = False
    """Whether the message says which server it is about."""
    _fields: ClassVar[tuple[str, ...]] = ()
    # Of the fields, as ``str.format`` takes it; empty where the message is brief.
    _brief: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(dict.fromkeys((*cls._fields, *cls.__annotations__)))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not self._fields:
            super().__init__(*args)
            return
        values = {**dict(zip(self._fields, args, strict=False)), **kwargs}
        # A default is an attribute of the class.
        super().__init__(*(values[n] if n in values else getattr(self, n) for n in self._fields))
        vars(self).update(zip(self._fields, self.args, strict=True))

    def __str__(self) -> str:
        return explained(self.message, self.anchor) if self.anchor else self.message

    @property
    def message(self) -> str:
        """What failed, where the value came from, why, and what to do, without the anchor."""
        return self._text()

    @property
    def anchor(self) -> str:
        """Where docs/fix.md explains it; empty for what says all by itself."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()
        return _ANCHOR_BY_CAUSE.get(self.cause, "" if type(self) is WarmupError else name)

    def _text(self) -> str:
        return super().__str__()

    @property
    def failed_by(self) -> FailedBy:
        """Who failed: ``server``, where another model would fail too, or this ``model`` only."""
        return "server" if self.cause in _OF_SERVER else "model"

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return self._brief.format_map(vars(self)) or self.message


def words_of(exc: BaseException) -> str:
    """Return what *exc* says, for a message that names a section of its own."""
    return exc.message if isinstance(exc, WarmupError) else str(exc)
