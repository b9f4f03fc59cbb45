"""Models with their options, one or a list: "llama3.2:1b,num_ctx=8192 mistral" ↔ ModelSpec."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from pytest_ollama_warmup.errors import BadSpec
from pytest_ollama_warmup.ollama.names import ModelName, closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OptionValue = int | bool
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:(\d+\.?\d*|\.\d+)(h|ms|us|µs|ns|m|s))")
_VERSION = re.compile(r"[0-9.]+(:[^/]*)?")
_FILE = re.compile(r"\.py(::|$)")
FOREVER = -1.0
_YEAR_S = 365 * 86400.0

# The runner options of Ollama v0.33 (api/types.go, Runner): a request with another value than the
# loaded model has makes the server load it again. Least value, or bool.
_LEAST: dict[str, int | None] = {
    # The server silently takes a context below 4 as 4; nothing below 16 is meant.
    "num_ctx": 16,
    "num_batch": 1,
    "num_gpu": -1,
    "main_gpu": 0,
    "use_mmap": None,
    "num_thread": 1,
}
RUNNER_KEYS = tuple(_LEAST)
KEYS = (*RUNNER_KEYS, "keep_alive", "insecure")
# What Ollama's API calls options too, and takes with each request (api/types.go, Options, v0.33).
OF_REQUESTS = {
    *("num_keep", "seed", "num_predict", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n"),
    *("temperature", "repeat_penalty", "presence_penalty", "frequency_penalty", "stop"),
}
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


class ModelSpec(NamedTuple):
    """A model as somebody asked for it; equal names compare by ``key``.

    *digest* pins it: the first hex digits of its manifest's sha256, as ``/api/tags`` lists it.
    *capabilities* are what a test needs it for; they are no part of its text or its key.
    """

    name: str
    options: tuple[tuple[str, OptionValue], ...] = ()
    keep_alive: float | None = None
    insecure: bool = False
    digest: str = ""
    capabilities: tuple[str, ...] = ()

    @property
    def model_key(self) -> str:
        """The model without its options, as Ollama compares names."""
        return ModelName.parse(self.name).key

    @property
    def key(self) -> str:
        """The model with its pin and runner options: what is ready or not."""
        return self.model_key + self._pin_and_options

    @property
    def title(self) -> str:
        """The model with its pin and runner options, as people read it."""
        return self.name + self._pin_and_options

    @property
    def _pin_and_options(self) -> str:
        pin = f"@sha256:{self.digest}" if self.digest else ""
        return pin + "".join(f",{key}={_write(value)}" for key, value in self.options)

    def __str__(self) -> str:
        text = self.title
        if self.keep_alive is not None:
            # Not :g, which rounds to six digits.
            text += f",keep_alive={str(self.keep_alive).removesuffix('.0')}"
        return f"{text},insecure=true" if self.insecure else text

    def is_version(self, digest: str) -> bool:
        """Whether a model with *digest* is the version that is meant: any, where none is pinned."""
        return digest.startswith(self.digest)

    def given(self, options: Mapping[str, object], source: str) -> ModelSpec:
        """Return this spec with *options* (as a mark gives them) added.

        Raises:
            BadSpec: an unknown key, a bad value, or another value than the spec itself has.
        """
        spec = self
        for key, value in options.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            token = f"{key}={text}"
            if dict(spec.options).get(key, value) != value:
                raise BadSpec(token, source, f"{spec} says otherwise; give it once")
            spec = _with_option(spec, str(key), text, token, source)
        return spec


def parse_specs(texts: str | Iterable[str], source: str) -> tuple[ModelSpec, ...]:
    """Read a list of specs, split at white space and commas; equal ones are one.

    A ``key=value`` belongs to the model before it. ``model?num_ctx=8192&keepalive=30m`` is
    accepted too.

    Raises:
        BadSpec: names the token, *source*, and what is allowed.
    """
    specs: list[ModelSpec] = []
    for text in [texts] if isinstance(texts, str) else texts:
        before: ModelSpec | None = None
        for token in re.split(r"[\s,]+", text.strip()):
            if not token:
                continue
            name, asked, query = token.partition("?")
            if "=" in name:
                if before is None:
                    raise BadSpec(
                        token,
                        source,
                        "no model before it; write llama3.2:1b,num_ctx=8192 as one value",
                    )
                before = specs[-1] = _with_option(before, *_split(token, source), token, source)
                continue
            if not name or (asked and not query):
                raise BadSpec(token, source, "expected a model name such as llama3.2:1b")
            if before is not None and _VERSION.fullmatch(name):
                raise BadSpec(token, source, _no_model(name, token, before))
            name, _, pin = name.partition("@")
            spec = ModelSpec(_check_name(name, source), digest=_read_pin(pin, token, source))
            for pair in query.split("&") if query else ():
                key, value = _split(pair, source)
                key = {"keepalive": "keep_alive"}.get(key, key)
                spec = _with_option(spec, key, value, token, source)
            specs.append(spec)
            before = spec
    return distinct(specs, source)


def distinct(specs: Iterable[ModelSpec], source: str) -> tuple[ModelSpec, ...]:
    """Return each model of a list once, in the order in which they come.

    Raises:
        BadSpec: one model stands there twice with different options.
    """
    seen: dict[str, ModelSpec] = {}
    for spec in specs:
        other = seen.setdefault(spec.model_key, spec)
        if other._replace(name=spec.name) != spec:
            raise BadSpec(str(spec), source, f"{other.name} is listed twice with different options")
    return tuple(seen.values())


def parse_duration(text: str, source: str, token: str = "") -> float:
    """Read a keep-alive in seconds; -1 for no limit.

    The API refuses a string without unit and takes numbers above about 292 years as zero
    (tried on v0.33.0), so a keep-alive of more than a year becomes -1.

    Raises:
        BadSpec: no duration, or zero, which would unload the model at once.
    """
    value = text.strip()
    negative = value.startswith("-")
    amount = read_seconds(value.removeprefix("-").removeprefix("+"))
    if amount is None or not amount > 0 or (amount < 1 and not negative):
        raise BadSpec(token or value, source, _DURATION_FORMS)
    return FOREVER if negative or amount > _YEAR_S else amount


_DURATION_FORMS = "expected a duration: seconds (600), 10m, 1h30m, or -1 for no limit; at least 1 s"


def read_seconds(text: str) -> float | None:
    """Read a number of seconds, or Go's form ``1h30m``; None if *text* is neither."""
    digits = text.strip()
    try:
        amount = float(digits)
    except ValueError:
        parts = _DURATION.findall(digits)
        if not parts or "".join(number + unit for number, unit in parts) != digits:
            return None
        amount = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return None if math.isnan(amount) else amount


def _split(pair: str, source: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not (key and equals and value):
        raise BadSpec(pair, source, f"expected key=value; keys: {', '.join(KEYS)}")
    return key, value


def _no_model(name: str, token: str, before: ModelSpec) -> str:
    """Say what a number in a list of models may have been meant for."""
    if ":" not in before.name:
        return f"a space separates models; {before.name}{token} is one"
    meant = f"; for a context length write num_ctx={name}" if name.isdigit() else ""
    return f"no model has such a name{meant}"


def _check_name(name: str, source: str) -> str:
    if _FILE.search(name):
        # "--ollama-preload test_chat.py" would ask a registry for it.
        raise BadSpec(name, source, "a file, no model; expected a name such as llama3.2:1b")
    try:
        ModelName.parse(name)
    except ValueError as exc:
        raise BadSpec(name, source, f"{exc}; expected a model name such as llama3.2:1b") from None
    return name


def _read_pin(pin: str, token: str, source: str) -> str:
    if "@" not in token:
        return ""
    match = re.fullmatch(r"sha256[:-]([0-9a-fA-F]{8,64})", pin)
    if match is None:
        raise BadSpec(token, source, "a pin is @sha256: and 8 to 64 hex digits of the digest")
    return match[1].lower()


def _with_option(spec: ModelSpec, key: str, value: str, token: str, source: str) -> ModelSpec:
    if key == "keep_alive":
        seconds = parse_duration(value, source, token)
        if spec.keep_alive not in (None, seconds):
            raise BadSpec(token, source, f"{key} is given twice for {spec.name}")
        return spec._replace(keep_alive=seconds)
    if key == "insecure":
        return spec._replace(insecure=_read_bool(value, token, source))
    if key not in _LEAST:
        raise BadSpec(token, source, _no_key(key))
    least = _LEAST[key]
    read = (
        _read_bool(value, token, source)
        if least is None
        else _read_int(value, least, token, source)
    )
    if key in dict(spec.options) and dict(spec.options)[key] != read:
        raise BadSpec(token, source, f"{key} is given twice for {spec.name}")
    return spec._replace(options=tuple(sorted({**dict(spec.options), key: read}.items())))


def _no_key(key: str) -> str:
    if key in OF_REQUESTS:
        why = f"{key} does not decide how a model is loaded: send it with each request"
    elif meant := closest(key.lower(), KEYS):
        return f"unknown key {key!r}; did you mean {meant}?"
    else:
        why = f"unknown key {key!r}"
    return f"{why}; keys: {', '.join(KEYS)}"


def _read_bool(value: str, token: str, source: str) -> bool:
    if value.lower() not in _BOOLS:
        raise BadSpec(token, source, "expected true or false")
    return _BOOLS[value.lower()]


def _read_int(value: str, least: int, token: str, source: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,9}", value) or int(value) < least:
        raise BadSpec(token, source, f"expected a whole number of at least {least}")
    return int(value)


def _write(value: OptionValue) -> str:
    return str(value).lower()
