"""The hooks that a suite, or another plugin, can implement.

``@pytest.hookimpl(optionalhook=True)`` keeps pytest from refusing them in a suite that also runs
without this plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_ollama_warmup.config.spec import ModelSpec


@pytest.hookspec(firstresult=True)
def pytest_ollama_host(config: pytest.Config) -> str | None:
    """Return the address of the server to use, after starting it if need be; None for the usual.

    Called once per run, in the controller of pytest-xdist or the only process, when a server is
    needed for the first time: never in a run that needs no model. ``--ollama-host`` on the command
    line goes before it, and OLLAMA_HOST behind. It must live in the root conftest, in a conftest of
    a directory that is named on the command line, or in a plugin: others are loaded too late.

    Example: a server in a container that ends with the run (testcontainers)::

        @pytest.hookimpl(optionalhook=True)
        def pytest_ollama_host(config):
            from testcontainers.ollama import OllamaContainer

            container = OllamaContainer("ollama/ollama:0.33.0").start()
            config.add_cleanup(container.stop)
            return container.get_endpoint()
    """


@pytest.hookspec(firstresult=True)
def pytest_ollama_warmup_request(config: pytest.Config, spec: ModelSpec) -> dict[str, Any] | None:
    """Return the body of the request that warms *spec*; None for the usual short prompt.

    It goes to ``/api/chat`` if it has ``messages``, to ``/api/embed`` if it has ``input``, else to
    ``/api/generate`` with its ``prompt``. ``model`` and ``stream`` are set for it. ``options`` that
    it lacks are those of *spec*, and ``num_predict`` 5 where it says nothing. Not called with
    ``--ollama-warm`` other than ``prompt``.

    Example: the server reads the suite's long system prompt once, and has it in its cache for the
    first test (v0.33)::

        @pytest.hookimpl(optionalhook=True)
        def pytest_ollama_warmup_request(config, spec):
            if spec.name == "llama3.2:1b":
                return {"messages": [{"role": "system", "content": SYSTEM_PROMPT}]}
    """
