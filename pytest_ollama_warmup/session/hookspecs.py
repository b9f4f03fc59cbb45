"""The hooks that a suite, or another plugin, can implement.

``@pytest.hookimpl(optionalhook=True)`` keeps pytest from refusing them in a suite that also runs
without this plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from typing import Any

    from pytest_ollama_warmup.config.model_specs import ModelSpec


@pytest.hookspec(firstresult=True)
def pytest_ollama_host(config: pytest.Config) -> str | None:
    """Return the address of the server to use, or None for the usual one.

    The hook may start the server first. The plugin calls it once per run, in the only process or
    the controller of pytest-xdist, when it first needs a server, and never in a run that needs no
    model. ``--ollama-host`` on the command line takes precedence over this hook, and this hook over
    ``OLLAMA_HOST``. A hook that is loaded only during collection stops the run with an error,
    because the controller of pytest-xdist would not see it.

    Example: start a server in a container that stops with the run (testcontainers)::

        @pytest.hookimpl(optionalhook=True)
        def pytest_ollama_host(config):
            from testcontainers.community.ollama import OllamaContainer

            container = OllamaContainer("ollama/ollama:0.33.0").start()
            config.add_cleanup(container.stop)
            return container.get_endpoint()
    """


@pytest.hookspec(firstresult=True)
def pytest_ollama_warmup_request(config: pytest.Config, spec: ModelSpec) -> dict[str, Any] | None:
    """Return the body of the request that warms up *spec*, or None for the usual one.

    A body with ``messages`` goes to ``/api/chat``, one with ``input`` to ``/api/embed``, and any
    other to ``/api/generate``. The plugin sets ``model`` and ``stream``, adds the runner options of
    *spec* that the body leaves out, and sets ``num_predict`` to 5 unless the body has it. It does
    not call the hook with ``--ollama-warm=load`` or ``off``.

    Example: the server reads the suite's long system prompt before the first test::

        @pytest.hookimpl(optionalhook=True)
        def pytest_ollama_warmup_request(config, spec):
            if spec.name == "llama3.2:1b":
                return {"messages": [{"role": "system", "content": SYSTEM_PROMPT}]}
    """
