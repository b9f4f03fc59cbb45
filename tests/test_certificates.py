"""A private certificate authority in front of Ollama on loopback, as Caddy or mkcert make one."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme

from pytest_ollama_warmup.emulator import Emulator
from tests.conftest import LLAMA, UserSuite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ORGANISATION, UNIT = "a company", "its authority"
TESTS = {
    "test_it.py": """
        import asyncio
        import pytest

        @pytest.mark.requires_model("llama3.2:1b")
        def test_both_clients(ollama_client, ollama_async_client):
            assert ["llama3.2:1b"] == [one.model for one in ollama_client.list().models]
            listed = asyncio.run(ollama_async_client.list())
            assert ["llama3.2:1b"] == [one.model for one in listed.models]
    """
}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(organization_name=ORGANISATION, organization_unit_name=UNIT)


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Emulator]:
    """An emulator that speaks TLS, with a certificate of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Emulator([replace(LLAMA, present=True)], start=False) as emulator:
        listening = emulator._server.socket
        emulator._server.socket = context.wrap_socket(listening, server_side=True)
        emulator.start()
        yield emulator


@pytest.fixture
def suite(
    pytester: pytest.Pytester, secure: Emulator, monkeypatch: pytest.MonkeyPatch
) -> UserSuite:
    """A suite whose OLLAMA_HOST is that server, on a machine that names no authority."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OLLAMA_HOST", secure.url.replace("http:", "https:"))
    suite = UserSuite(pytester)
    suite.write(TESTS)
    return suite


def der(tag: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([tag, len(body)]) + body


def hashed_name() -> str:
    """Return the name by which OpenSSL looks for the authority in a directory."""
    # X509_NAME_hash: the parts of the subject as lower-case UTF-8, without the sequence around.
    parts = ((b"\x55\x04\x0a", ORGANISATION), (b"\x55\x04\x0b", UNIT))
    name = b"".join(
        der(0x31, der(0x30, der(0x06, kind) + der(0x0C, text.encode()))) for kind, text in parts
    )
    return f"{int.from_bytes(hashlib.sha1(name).digest()[:4], 'little'):08x}.0"


@pytest.mark.parametrize(
    ("variable", "file"),
    [
        ("SSL_CERT_FILE", "authority.pem"),
        ("REQUESTS_CA_BUNDLE", "authority.pem"),
        ("SSL_CERT_DIR", hashed_name()),
        # requests takes a directory too.
        ("REQUESTS_CA_BUNDLE", hashed_name()),
    ],
)
def test_a_private_authority_counts_on_loopback(
    suite: UserSuite,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    file: str,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / file))
    monkeypatch.setenv(variable, str(tmp_path if file.endswith(".0") else tmp_path / file))
    run = suite.run("-rs")
    assert {"passed": 1} == run.counts
    assert "certificate" not in run.out
    # The fixtures alone: the plugin has not asked.
    assert {"passed": 1} == suite.run("--ollama-off").counts


def test_without_a_variable_the_message_names_the_failure_and_the_variable(
    suite: UserSuite, secure: Emulator
) -> None:
    run = suite.run("-rs")
    assert {"skipped": 1} == run.counts
    assert "certificate refused (unable to get local issuer certificate)" in run.out
    assert "SSL_CERT_FILE" in run.out
    assert [] == secure.requests
