"""Which tests met a model that was not loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_ollama_warmup.warmup.looks import read_looks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_ollama_warmup.warmup.memory import Memory
    from pytest_ollama_warmup.warmup.ran_tests import RanTest
    from pytest_ollama_warmup.warmup.run_directory import HostDirectory


def with_cold(
    ran: Sequence[RanTest], memories: Sequence[Memory], hosts: Sequence[HostDirectory]
) -> list[RanTest]:
    """Return *ran* with the models that were not loaded before each of them.

    Those that the plugin loaded again before the test count, and those that it left to the test.
    """
    cold: dict[str, set[str]] = {}
    for memory in memories:
        for entry in memory.known.values():
            for reload in entry.reloads:
                cold.setdefault(reload.test, set()).add(entry.key)
    # Thousands of looks see the same few models.
    covered: dict[frozenset[tuple[str, str]], set[str]] = {}
    for host in hosts:
        for look in read_looks(host):
            if look.when != "before" or look.loaded is None:
                continue
            loaded = frozenset((name, seen.digest) for name, seen in look.loaded.items())
            if loaded not in covered:
                covered[loaded] = {
                    key
                    for memory in memories
                    for name, digest in loaded
                    for key in memory.keys_of(name, digest)
                }
            for test in look.tests:
                cold.setdefault(test, set()).update(set(look.keys) - covered[loaded])
    return [ran_test._replace(cold=tuple(sorted(cold.get(ran_test.test, ())))) for ran_test in ran]
