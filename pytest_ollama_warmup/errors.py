"""Everything that can go wrong.

WarmupError
├── BadSetting            a value that the user gave cannot be used; also a ValueError
│   ├── Conflict
│   ├── BadHost
│   ├── MissingVariable
│   ├── BadSpec
│   └── BadMark
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
│       └── PortTaken
├── ModelError            one model cannot be made ready
│   ├── NotPulled
│   ├── UnknownModel
│   ├── OtherDigest
│   ├── LacksCapability
│   ├── PullFailed
│   └── LoadFailed
├── ApiError              one answer that is an error; the caller says what it means
│   └── GatewayAnswered
└── WaitedTooLong         another process holds the work and shows no progress

Parameters are positional and all go to ``super().__init__``, so that each can be pickled. The first
line of a text says what is wrong and why, the next one what to do about it.
"""

from __future__ import annotations

import re

from pytest_ollama_warmup.text import clean, seconds, without_provider

# Of Ollama v0.33 (types/model/capability.go).
CAPABILITIES = (
    "completion",
    "tools",
    "insert",
    "vision",
    "embedding",
    "thinking",
    "image",
    "audio",
)


class WarmupError(Exception):
    """Base of all errors of this package."""

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return str(self)


class BadSetting(WarmupError, ValueError):
    """A value cannot be used; the text names it, who gave it, and what is allowed."""

    def __init__(self, value: str, source: str, allowed: str) -> None:
        super().__init__(value, source, allowed)
        self.value, self.source, self.allowed = value, source, allowed

    def __str__(self) -> str:
        return f"{clean(self.value)!r} is not a valid {self.source}. {self.allowed}"


class Conflict(BadSetting):
    """Two settings that cannot go together, given in equally strong places."""

    def __init__(self, one: str, other: str, why: str) -> None:
        super().__init__(one, other, why)

    def __str__(self) -> str:
        return (
            f"{self.value} {self.allowed}, and cannot go with {self.source}. Leave one of them out."
        )


class BadHost(BadSetting):
    """An address that no client could connect to."""

    def __str__(self) -> str:
        return (
            f"{self.value!r} (from {self.source}) is not an address of an Ollama server: "
            f"{self.allowed}. Valid: HOST, HOST:PORT, http://HOST:PORT, https://HOST[:PORT][/PATH]."
        )


class MissingVariable(BadSetting):
    """A header whose value is in an environment variable that is not set."""

    def __str__(self) -> str:
        return (
            f"the header {clean(self.value)} (from {self.source}) needs the environment variable "
            f"{self.allowed}, which is not set. Set it, or leave the header out."
        )


class BadSpec(BadSetting):
    """A model specification that cannot be read."""

    def __str__(self) -> str:
        return f"{clean(self.value)!r} (from {self.source}): {self.allowed}"


class BadMark(BadSetting):
    """A mark that does not fit its signature or holds a value that cannot be used."""

    def __str__(self) -> str:
        end = "" if self.value.endswith("?") else "."
        return f"{self.source}: {self.value}{end} The mark is {self.allowed}."


class NoModelNamed(WarmupError):
    """A test asks for its model, names none, and not exactly one is listed."""

    def __init__(self, test: str, fixture: str, listed: tuple[str, ...]) -> None:
        super().__init__(test, fixture, listed)
        self.test, self.fixture, self.listed = test, fixture, listed

    def __str__(self) -> str:
        test = self.test.rpartition("::")[2]
        if not self.listed:
            return (
                f"{test} uses {self.fixture} without naming a model, and no model is listed. "
                'Add @pytest.mark.requires_model("MODEL"), or run with --ollama-preload MODEL.'
            )
        first = self.listed[0]
        return (
            f"{test} uses {self.fixture} without naming a model, and {len(self.listed)} are listed "
            f'({", ".join(self.listed)}). Add @pytest.mark.requires_model("{first}"), '
            f'or use ollama_models["{first}"].name.'
        )


class OllamaNotFound(WarmupError):
    """The program that a server is to be started with is in none of the places *looked* at."""

    def __init__(self, program: str, looked: tuple[str, ...]) -> None:
        super().__init__(program, looked)
        self.program, self.looked = program, looked

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"no {self.program}"

    def __str__(self) -> str:
        return (
            f"no server can be started: {clean(self.program)} is not there. Looked at: "
            f"{', '.join(clean(one) for one in self.looked)}.\nGet Ollama from "
            "https://ollama.com/download (Linux: curl -fsSL https://ollama.com/install.sh | sh; "
            "macOS: brew install ollama; Windows: winget install Ollama.Ollama), say where it is "
            "with --ollama-serve-command 'PATH serve', or use a server that runs with "
            "--ollama-host URL."
        )


class ServerError(WarmupError):
    """No model can be had from the server at *url*; *source* is who gave the address."""

    url: str
    source: str


def _no_proxy(url: str) -> str:
    name = url.split("://", 1)[1].split("/", 1)[0].rpartition(":")[0]
    return f"If the server needs no proxy, add {name} to NO_PROXY."


class ServerUnreachable(ServerError):
    """Nothing answered within the time allowed."""

    def __init__(self, url: str, source: str, cause: str, waited_s: float, note: str = "") -> None:
        super().__init__(url, source, cause, waited_s, note)
        self.url, self.source, self.cause, self.waited_s = url, source, cause, waited_s
        self.note = note

    @property
    def timed_out(self) -> bool:
        """Whether the server was connected, and gave no answer in time, or no end of one."""
        return self.cause in ("no answer", "no complete answer")

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"no Ollama: {self.cause}"

    def __str__(self) -> str:
        waited = f" for {seconds(self.waited_s)}" if self.waited_s >= 0.05 else ""
        advice = "Start it with 'ollama serve', or set --ollama-host."
        if self.note and self.cause in ("connection refused", "no connection"):
            advice = f"{self.note}."
        elif self.cause == "host name not found":
            advice = "Is the name right?"
        elif "ollama-serve" in self.source or "ollama_serve" in self.source:
            advice = "It has ended; its log, named at the end of the run, says why."
        elif "ollama_host" in self.source:
            advice = f"Start it, or fix {self.source}."
        if "from the proxy of" in self.cause:
            advice = _no_proxy(self.url)
        elif "proxy" in self.cause:
            advice = "Fix it, or name the host in NO_PROXY."
        return f"no Ollama at {self.url} (from {self.source}): {self.cause}{waited}.\n{advice}"


class NotOllama(ServerError):
    """Something answers at the address, and it is another service: *request* got *seen*."""

    def __init__(
        self, url: str, source: str, seen: str, note: str, request: str = "GET /api/version"
    ) -> None:
        super().__init__(url, source, seen, note, request)
        self.url, self.source, self.seen, self.note = url, source, seen, note
        self.request = request

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return "not an Ollama server"

    def __str__(self) -> str:
        note = f"\nNote: {self.note}." if self.note else "\nSet --ollama-host."
        return (
            f"{self.url} (from {self.source}) answers, but is not Ollama "
            f"({self.request}: {self.seen}). Another service?{note}"
        )


class ProxyAnswered(ServerError):
    """A proxy answers in place of the server: *variable* names it."""

    def __init__(self, url: str, source: str, status: int, variable: str) -> None:
        super().__init__(url, source, status, variable)
        self.url, self.source, self.status, self.variable = url, source, status, variable

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"a proxy answers: HTTP {self.status}"

    def __str__(self) -> str:
        return (
            f"the proxy of {self.variable} answers in place of {self.url} (from {self.source}): "
            f"HTTP {self.status}.\n{_no_proxy(self.url)}"
        )


class AccessDenied(ServerError):
    """The server, or what stands before it, refused: 401 or 403."""

    def __init__(self, url: str, source: str, status: int, words: str, key: str) -> None:
        super().__init__(url, source, status, words, key)
        self.url, self.source, self.status, self.words, self.key = url, source, status, words, key

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"access refused: HTTP {self.status}"

    def __str__(self) -> str:
        words = f' "{self.words}"' if self.words else ""
        advice = {
            "sent": "The server does not accept the key in OLLAMA_API_KEY.",
            "withheld": "OLLAMA_API_KEY was not sent: it goes to https and loopback only.",
            "unusable": "OLLAMA_API_KEY was not sent: it is not plain ASCII text on one line.",
            "none": "Set OLLAMA_API_KEY if it wants a key, write USER:PASSWORD@ before the host if "
            "it wants a password, or pass --ollama-header if it wants a header.",
            "login": "The server does not accept the user and password in the address.",
            "header": "The server does not accept what --ollama-header sends.",
        }[self.key]
        if self.status == 403 and not self.words:
            advice = (
                "An Ollama bound to loopback answers so to a host name it does not know; "
                "use its address in --ollama-host."
            )
        return (
            f"{self.url} (from {self.source}) refuses access (HTTP {self.status}{words}).\n{advice}"
        )


class TlsFailed(ServerError):
    """The encrypted connection could not be set up."""

    def __init__(self, url: str, source: str, cause: str) -> None:
        super().__init__(url, source, cause)
        self.url, self.source, self.cause = url, source, cause

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"no secure connection: {self.cause}"

    def __str__(self) -> str:
        return (
            f"no secure connection to {self.url} (from {self.source}): {self.cause}.\n"
            "Use http:// for a server without TLS; for a private certificate authority "
            "set SSL_CERT_FILE."
        )


class Aborted(ServerError):
    """The run has ended, and with it all that was still under way."""

    def __init__(self, url: str, source: str) -> None:
        super().__init__(url, source)
        self.url, self.source = url, source

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return "interrupted"

    def __str__(self) -> str:
        return f"interrupted while working with {self.url} (from {self.source})."


class CannotAsk(ServerError):
    """Something stands in the way: *replaced* says which part of httpx is not its own, and why."""

    def __init__(self, url: str, source: str, cause: str, replaced: str) -> None:
        super().__init__(url, source, cause, replaced)
        self.url, self.source, self.cause, self.replaced = url, source, cause, replaced

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        part = self.replaced.partition(" (")[0]
        return f"cannot be asked: {f'{part} is replaced' if part else self.cause}"

    def __str__(self) -> str:
        said = f"the server at {self.url} (from {self.source}) cannot be asked: "
        if not self.replaced:
            return f"{said}{self.cause}.\nDoes the suite, or a plugin, block network access?"
        return (
            f"{said}the suite, or a plugin, has replaced {self.replaced}: {self.cause}.\nReplace "
            "it in a fixture, not on import. Without workers --ollama-background helps too: "
            "another process then prepares the models."
        )


class ServerStartFailed(ServerError):
    """The server that was started for this run does not come up.

    *log* is the path of its log, *lines* are the last of it, and those before that tell of errors.
    """

    advice = (
        "Fix that, pass another command with --ollama-serve-command, or use a server that runs "
        "with --ollama-host URL."
    )

    def __init__(self, url: str, source: str, cause: str, log: str, lines: tuple[str, ...]) -> None:
        super().__init__(url, source, cause, log, lines)
        self.url, self.source, self.cause, self.log, self.lines = url, source, cause, log, lines

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"did not start: {self.cause}"

    def __str__(self) -> str:
        said = f"the server at {self.url} (from {self.source}) did not start: {self.cause}."
        if self.lines:
            said += f" The end of {self.log}:\n  " + "\n  ".join(self.lines) + "\n"
        elif self.log:
            said += f" It wrote nothing to {self.log}.\n"
        else:
            said += "\n"
        return said + self.advice


class PortTaken(ServerStartFailed):
    """Another process listens on the port since it was chosen; a new one may do."""

    advice = (
        "Run again: each run takes another port. Or use a server that runs with --ollama-host URL."
    )


class ModelError(WarmupError):
    """The model *model* cannot be made ready; *origin* says who lists it, empty for nobody."""

    model: str
    origin: str

    @property
    def _who(self) -> str:
        return f"{self.model} ({self.origin})" if self.origin else self.model


def _meant(name: str, model: str) -> str:
    if name:
        return f" Did you mean {name}, which is there?"
    if (bare := without_provider(model)) != model:
        return f" Did you mean {bare}? Ollama does not know the prefix {model.removesuffix(bare)}."
    return ""


class NotPulled(ModelError):
    """The model is not on the server, and nothing allows its download."""

    def __init__(self, model: str, origin: str, cloud: bool = False, meant: str = "") -> None:
        super().__init__(model, origin, cloud, meant)
        self.model, self.origin, self.cloud, self.meant = model, origin, cloud, meant

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return "not pulled"

    def __str__(self) -> str:
        if self.cloud:
            return (
                f"{self._who}: the server does not offer this cloud model.\n"
                "Sign it in with 'ollama signin'; models of the cloud are never pulled."
            )
        return (
            f"{self._who} is not pulled.{_meant(self.meant, self.model)}\n"
            f"Run 'ollama pull {self.model}', or pytest with --ollama-pull=missing"
            f"{_or_alias(self.model)}."
        )


class UnknownModel(ModelError):
    """The registry has no model of this name."""

    def __init__(self, model: str, origin: str, words: str, meant: str = "") -> None:
        super().__init__(model, origin, words, meant)
        self.model, self.origin, self.words, self.meant = model, origin, words, meant

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return "not in the registry"

    def __str__(self) -> str:
        return (
            f"{self._who}: the registry has no such model ({self.words})."
            f"{_meant(self.meant, self.model)}\nCheck name and tag{_or_alias(self.model)}."
        )


class OtherDigest(ModelError):
    """The server has the model in another version than the one that is pinned."""

    def __init__(self, model: str, origin: str, pinned: str, digest: str) -> None:
        super().__init__(model, origin, pinned, digest)
        self.model, self.origin, self.pinned, self.digest = model, origin, pinned, digest

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"digest {self.digest[:12]}, pinned {self.pinned[:12]}"

    def __str__(self) -> str:
        return (
            f"{self._who} is another version than the pinned one: the server has "
            f"sha256:{self.digest}, pinned is sha256:{self.pinned}.\nRun pytest with "
            "--ollama-pull=always if the registry has the pinned one, or change the pin."
        )


class LacksCapability(ModelError):
    """The model cannot do what a test asks of it."""

    def __init__(
        self, model: str, origin: str, missing: tuple[str, ...], has: tuple[str, ...]
    ) -> None:
        super().__init__(model, origin, missing, has)
        self.model, self.origin, self.missing, self.has = model, origin, missing, has

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return f"cannot do {', '.join(self.missing)}"

    def __str__(self) -> str:
        odd = [one for one in self.missing if one not in CAPABILITIES]
        note = ""
        if odd:
            note = f" Servers know {', '.join(CAPABILITIES)} (v0.33), not {', '.join(odd)}."
        return (
            f"{self._who} cannot do {', '.join(self.missing)}: the server says "
            f"it can do {', '.join(self.has) or 'nothing'}.{note}\nUse a model that can, "
            "or change capabilities= of the mark."
        )


class PullFailed(ModelError):
    """The download ended without the model."""

    def __init__(self, model: str, origin: str, words: str, advice: str) -> None:
        super().__init__(model, origin, words, advice)
        self.model, self.origin, self.words, self.advice = model, origin, words, advice

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return _in_words(self.words, "the pull failed")

    def __str__(self) -> str:
        return f"{self._who} could not be pulled: {self.words}.\n{self.advice}"


class LoadFailed(ModelError):
    """The server has the model, and could not load it."""

    def __init__(self, model: str, origin: str, words: str, advice: str) -> None:
        super().__init__(model, origin, words, advice)
        self.model, self.origin, self.words, self.advice = model, origin, words, advice

    @property
    def brief(self) -> str:
        """The cause in a few words, for a table."""
        return _in_words(self.words, "does not load")

    def __str__(self) -> str:
        # The server's words hold quotes now and then.
        quote = "'" if '"' in self.words else '"'
        return f"{self.model} does not load: {quote}{self.words}{quote}.\n{self.advice}"


# What a server's words come down to, by what is in them.
_CAUSES = (
    (r"no such host|dial tcp|i/o timeout|tls handshake|proxyconnect", "registry unreachable"),
    (r"no space left|disk quota", "no space on the disk"),
    (r"unauthorized|access denied|HTTP 40[13]", "access refused"),
    (r"no progress|stall|stands still", "the download stalled"),
    (r"digest mismatch", "the download is damaged"),
    (r"memory|cudamalloc|vram", "not enough memory"),
    (r"gateway", "a gateway answered"),
    (r"no answer|no complete answer|refused|reset|closed|lost", "the server went away"),
)


def _in_words(words: str, otherwise: str) -> str:
    """Return the cause in a few words: a server's own may be the head of a long chain of errors."""
    return next(
        (cause for sign, cause in _CAUSES if re.search(sign, words, re.IGNORECASE)), otherwise
    )


def _or_alias(model: str) -> str:
    # One bare word may be an alias that nobody has defined.
    bare = re.fullmatch(r"[\w.-]+", model)
    return f"; for an alias add --ollama-alias {model}=MODEL" if bare else ""


class ApiError(WarmupError):
    """An answer of the server that is an error, inside whatever HTTP status it came."""

    def __init__(self, request: str, status: int, words: str) -> None:
        super().__init__(request, status, words)
        self.request, self.status, self.words = request, status, words

    def __str__(self) -> str:
        return f"{self.request}: HTTP {self.status}: {self.words}"


class GatewayAnswered(ApiError):
    """Somebody between us and the server has given up on a request, and says so by itself.

    *after_s* is how long the request had run by then.
    """

    def __init__(self, request: str, status: int, after_s: float = 0.0) -> None:
        words = f"HTTP {status} from a gateway before the server"
        self.after_s = after_s
        if self.is_limit:
            words += f", after {seconds(after_s)}"
        super().__init__(request, status, words)
        # What it is made of again, after a trip through pickle.
        self.args = (request, status, after_s)

    @property
    def is_limit(self) -> bool:
        """Whether the gateway had waited for the server: its time limit, to all appearance."""
        return self.after_s >= 1


class WaitedTooLong(WarmupError):
    """Another process holds the work on a model, and has shown no progress for *waited_s*."""

    def __init__(self, what: str, waited_s: float) -> None:
        super().__init__(what, waited_s)
        self.what, self.waited_s = what, waited_s

    def __str__(self) -> str:
        return (
            f"{self.what}: another process works on it and has shown no progress for "
            f"{seconds(self.waited_s)} (--ollama-load-timeout). End that process, or run again."
        )
