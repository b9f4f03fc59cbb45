"""Addresses, read as Ollama reads OLLAMA_HOST."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_ollama_warmup.errors import BadHost
from pytest_ollama_warmup.ollama.host import (
    Host,
    again,
    distinct,
    names,
    parse_host,
    parse_hosts,
)


def url_of(text: str) -> str:
    return parse_host(text, "OLLAMA_HOST").url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1234", "http://[::1]:1234"),
        ("http://[::1]:1234", "http://[::1]:1234"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("http://1.2.3.4:5", "http://1.2.3.4:5"),
        ("https://h", "https://h:443"),
        ("https://h:8443", "https://h:8443"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("https://example.com/ollama/", "https://example.com:443/ollama"),
        ("example.com/a/b", "http://example.com:11434/a/b"),
        ("http://h:1/", "http://h:1"),
        ("ollama.com", "https://ollama.com:443"),
        ("http://ollama.com", "http://ollama.com:80"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4:9'", "http://1.2.3.4:9"),
        ("  localhost\n", "http://localhost:11434"),
        ("my_box.local.", "http://my_box.local.:11434"),
    ],
)
def test_an_address_is_read_as_ollama_reads_it(text: str, url: str) -> None:
    assert url == url_of(text)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://0.0.0.0:8080/x", "http://127.0.0.1:8080/x"),
        ("::", "http://[::1]:11434"),
        ("[::]:8080", "http://[::1]:8080"),
    ],
)
def test_an_address_to_listen_on_becomes_one_to_connect_to(text: str, url: str) -> None:
    assert url == url_of(text)


def test_case_means_nothing_in_scheme_and_host_and_something_in_the_path() -> None:
    assert "https://example.com:443/Ollama" == url_of("HTTPS://Example.COM/Ollama")


@pytest.mark.parametrize("text", ["http://h", "http://HOST/path", "http://0.0.0.0", "http://[::1]"])
def test_http_without_a_port_notes_that_it_means_port_80(text: str) -> None:
    assert (
        "http:// without a port means port 80; Ollama listens on 11434" == parse_host(text, "").note
    )


@pytest.mark.parametrize(
    "text", ["", "h", "http://h:80", "https://h", "http://h:11434", "[::1]:80"]
)
def test_no_other_address_notes_that(text: str) -> None:
    assert "" == parse_host(text, "").note


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("https://localhost/path", True),
        ("example.com", False),
        ("127.example.com", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("192.168.0.2", False),
        ("[fe80::1]", False),
    ],
)
def test_loopback_is_this_machine_and_nothing_else(text: str, loopback: bool) -> None:
    assert loopback is parse_host(text, "").loopback


@pytest.mark.parametrize(
    ("text", "name"),
    [("http://h:1/p", "h"), ("[::1]:5", "::1"), ("", "127.0.0.1"), ("https://a.b", "a.b")],
)
def test_the_name_is_bare(text: str, name: str) -> None:
    assert name == parse_host(text, "").name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gpu", "gpu:11434"),
        ("http://gpu", "gpu:80"),
        ("HTTP://GPU:5000/", "gpu:5000"),
        ("0.0.0.0", "127.0.0.1:11434"),
        ("::1", "[::1]:11434"),
        ("http://[fe80::1%eth0]:9", "[fe80::1%eth0]:9"),
        ("http://ollama.com", "ollama.com:80"),
        ("ollama.com", "https://ollama.com:443"),
        ("https://gpu", "https://gpu:443"),
        ("gpu/ollama", "http://gpu:11434/ollama"),
        ("https://[::1]/a/b/", "https://[::1]:443/a/b"),
    ],
)
def test_the_variable_holds_host_and_port_and_a_url_only_where_they_do_not_say_it_all(
    text: str, value: str
) -> None:
    assert value == parse_host(text, "").as_variable


@pytest.mark.parametrize(
    ("text", "host", "named"),
    [
        (None, "127.0.0.1", True),
        (None, "localhost", True),
        ("", "http://127.0.0.1:11434", True),
        (" ' ' ", "127.0.0.1", True),
        ("localhost", "127.0.0.1:11434", True),
        (":5000", "HTTP://LocalHost:5000/", True),
        ("GPU", "http://gpu:11434", True),
        ("https://gpu", "https://gpu:443/", True),
        ("http://gpu/a/", "gpu:80/a", True),
        (None, "127.0.0.1:11435", False),
        (None, "::1", False),
        ("gpu", "http://gpu", False),
        ("https://gpu:443", "gpu:443", False),
        ("gpu/a", "gpu/A", False),
        ("gpu/a", "gpu", False),
        ("gpu:port", "gpu", False),
        ("a,b", "a", False),
        ("me:hunter2@gpu", "gpu", True),
        ("me:hunter2@gpu", "http://other@gpu:11434", True),
        ("me:hunt/er2@gpu", "gpu", False),
    ],
)
def test_a_value_of_the_variable_names_a_host_or_not(
    text: str | None, host: str, named: bool
) -> None:
    assert named is names(text, parse_host(host, ""))


def test_an_address_keeps_who_gave_it() -> None:
    assert Host("http://h:1", "--ollama-host") == parse_host("h:1", "--ollama-host")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://h", "scheme ftp"),
        ("h:66000", "port '66000', not a number from 1 to 65535"),
        ("h:65536", "port '65536'"),
        ("h:0", "port '0'"),
        ("h:-1", "port '-1'"),
        ("h:+1", "port '+1'"),
        ("h:abc", "port 'abc'"),
        ("h:", "port ''"),
        (f"h:{'9' * 5000}", "port '999"),
        ("h:٣", "port '٣'"),
        ("a b", "host 'a b'"),
        ("a\tb", "host 'a b'"),
        ("-h", "host '-h'"),
        ("1.2.3.456", "host '1.2.3.456'"),
        ("11434", "host '11434'"),
        ("a..b", "host 'a..b'"),
        (f"{'a' * 64}.com", "host 'aaa"),
        ("1:2:3", "host '1:2:3'"),
        ("1.2.3.4%x", "host '1.2.3.4%x'"),
        ("::1%a b", "host '::1%a b'"),
        ("höst", "host 'höst'"),
        ("http://h/a b", "after the host"),
        ("http://h/?q=1", "after the host"),
        ("http://h/#f", "after the host"),
        ('http://h/a"/', "after the host"),
        ("http://h/\x1b[31m", "after the host"),
        ("a,b", "more than one host"),
        ("http://a:1,http://b:2", "more than one host"),
        ("http://a:1/x,http://b:2", "after the host"),
    ],
)
def test_an_impossible_address_is_refused_by_name_and_reason(text: str, why: str) -> None:
    with pytest.raises(BadHost) as caught:
        parse_host(text, "--ollama-host")
    assert why in caught.value.allowed
    assert "(from --ollama-host) is not an address of an Ollama server" in str(caught.value)
    assert "Valid: HOST, HOST:PORT, http://HOST:PORT, https://HOST[:PORT][/PATH]." in str(
        caught.value
    )


def test_the_refusal_is_one_line_that_a_terminal_can_show() -> None:
    with pytest.raises(BadHost) as caught:
        parse_host("a\x1b]0;title\x07\nb", "OLLAMA_HOST")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "url", "login", "address"),
    [
        ("http://user:hunter2@h:1", "http://h:1", "user:hunter2", "http://user:hunter2@h:1"),
        ("user:hunter2@h", "http://h:11434", "user:hunter2", "http://user:hunter2@h:11434"),
        ("https://u:%2F%40ü@h/a/v1", "https://h:443/a", "u:/@ü", "https://u:%2F%40%C3%BC@h:443/a"),
        ("http://u:p@ss:1@[::1]:9/", "http://[::1]:9", "u:p@ss:1", "http://u:p%40ss%3A1@[::1]:9"),
        ("http://token@h:1", "http://h:1", "token:", "http://token:@h:1"),
        ("http://:key@h:1", "http://h:1", ":key", "http://:key@h:1"),
        ("http://@h:1", "http://h:1", "", "http://h:1"),
    ],
)
def test_user_and_password_are_taken_from_the_url(
    text: str, url: str, login: str, address: str
) -> None:
    host = parse_host(text, "OLLAMA_HOST")
    assert (url, login, address) == (host.url, host.login, host.address)
    assert parse_host(host.address, "OLLAMA_HOST")._replace(note="", dropped="") == host._replace(
        note="", dropped=""
    )
    assert host.as_variable == (address if login else "h:1")
    # Workers of pytest-xdist get it, and nothing but plain texts can be sent to them.
    assert type(host.as_variable) is str
    for shown in (repr(host), repr(host.address)):
        assert "***" in shown or not login
        assert not any(one in shown for one in ("hunter2", "ü", "p@ss", "token", "key"))


@pytest.mark.parametrize(
    ("text", "host", "fits"),
    [
        ("u:p@h", "u:p@h", True),
        ("http://u:p@h:11434/", "u:p@h", True),
        ("u:other@h", "u:p@h", False),
        ("h", "u:p@h", False),
        ("u:p@h", "h", True),
        (None, "u:p@127.0.0.1", False),
    ],
)
def test_a_value_that_lacks_the_login_does_not_do(text: str | None, host: str, fits: bool) -> None:
    assert names(text, parse_host(host, ""), with_login=True) is fits


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://user:hunter2/hunter2@h", "in a password write %2F, %3F or %23"),
        ("http://user:hunter2?@h", "in a password write %2F"),
        ("http://h/hunter2@h", "in a password write %2F"),
        ("user:hunter2://hunter2@h", "no http:// or https://"),
        ("ftp://user:hunter2@h", "no http:// or https://"),
        ("http://user:hunter2@h:66000", "port '66000'"),
        ("http://user:hunter2@h?x", "host 'h?x'"),
        ("http://hunter2%3Aa:b@h", "a user with a colon"),
        ("http://user:hunter2%0A@h", "a sign in it that nobody can type"),
    ],
)
def test_a_login_that_cannot_be_read_is_refused_and_never_shown(text: str, why: str) -> None:
    with pytest.raises(BadHost) as caught:
        parse_host(text, "OLLAMA_HOST")
    assert why in str(caught.value)
    assert "***@h" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)


@pytest.mark.parametrize(
    "text", ["u:hunter2,b@h", "a,u:hunter2,b@h", "u:hunter2@a,,b", "h:1,u:hunter2/@x"]
)
def test_nor_is_one_of_several(text: str) -> None:
    with pytest.raises(BadHost) as caught:
        parse_hosts(text, "--ollama-host")
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert caught.value.__context__ is None


_PIECES = st.lists(
    st.sampled_from(
        [
            "http://",
            "https://",
            "h",
            "a.b",
            "1.2.3.4",
            "0.0.0.0",
            "::1",
            "ollama.com",
            "80",
            "99999",
            *"[]:/\"' %@,?.-é\x00\n",
        ]
    ),
    max_size=8,
).map("".join)


@given(st.one_of(_PIECES, st.text()))
@example("http://h/a'b\"/")
@example("::1%\x00")
@example("//")
def test_what_is_accepted_reads_again_to_the_same_and_can_be_asked(text: str) -> None:
    try:
        host = parse_host(text, "x")
    except BadHost:
        return
    assert host.url == parse_host(host.url, "x").url
    assert host.url == parse_host(host.as_variable, "x").url
    assert names(text, host)
    assert names(host.as_variable, host)
    assert host.name
    assert httpx.URL(host.url).raw_host


def test_several_hosts_are_separated_by_commas() -> None:
    hosts = parse_hosts(" gpu1, gpu2:1234 ,https://gpu3", "--ollama-host")
    assert ["http://gpu1:11434", "http://gpu2:1234", "https://gpu3:443"] == [
        one.url for one in hosts
    ]
    assert {"--ollama-host"} == {one.source for one in hosts}


@pytest.mark.parametrize(
    ("text", "distinct_urls", "again_urls"),
    [
        ("a,b", ["http://a:11434", "http://b:11434"], []),
        ("a,b,a", ["http://a:11434", "http://b:11434"], ["http://a:11434"]),
        ("a,A:11434", ["http://a:11434"], ["http://a:11434"]),
        ("localhost,127.0.0.1,:11434", ["http://localhost:11434"], ["http://localhost:11434"]),
        ("127.0.0.1,localhost:2", ["http://127.0.0.1:11434", "http://localhost:2"], []),
        ("http://localhost:1/a,127.0.0.1:1", ["http://localhost:1/a", "http://127.0.0.1:1"], []),
        ("localhost.x,127.0.0.1.x", ["http://localhost.x:11434", "http://127.0.0.1.x:11434"], []),
        ("127.0.0.1,[::1]", ["http://127.0.0.1:11434", "http://[::1]:11434"], []),
    ],
)
def test_one_host_by_two_names_is_one(
    text: str, distinct_urls: list[str], again_urls: list[str]
) -> None:
    hosts = parse_hosts(text, "x")
    assert distinct_urls == [one.url for one in distinct(hosts)]
    assert again_urls == [one.url for one in again(hosts)]


@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b", "a, ,b"])
def test_a_comma_has_hosts_on_both_sides(text: str) -> None:
    with pytest.raises(BadHost, match="a comma with no host before or after it"):
        parse_hosts(text, "x")


@pytest.mark.parametrize(
    ("text", "url", "dropped"),
    [
        ("h:1/v1", "http://h:1", "/v1"),
        ("http://h:1/v1/", "http://h:1", "/v1"),
        ("http://h:1/api", "http://h:1", "/api"),
        ("http://h:1/api/generate", "http://h:1", "/api/generate"),
        ("https://h/gateway/v1", "https://h:443/gateway", "/v1"),
        ("https://h/gateway/api/tags", "https://h:443/gateway", "/api/tags"),
        ("http://h:1/v1/chat/completions", "http://h:1", "/v1/chat/completions"),
        # What only looks like one.
        ("http://h:1/v10", "http://h:1/v10", ""),
        ("http://h:1/myapi", "http://h:1/myapi", ""),
        ("http://h:1/api/other", "http://h:1/api/other", ""),
    ],
)
def test_a_path_of_the_api_is_no_part_of_the_address(text: str, url: str, dropped: str) -> None:
    host = parse_host(text, "test")
    assert (url, dropped) == (host.url, host.dropped)
    assert names(text, host)
