"""The same behind a file lock, as pytest-xdist's documentation shows it: one worker says "Hi"."""

import os

import ollama
import pytest
from filelock import FileLock


@pytest.fixture(scope="session", autouse=True)
def warm_model(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    model = os.environ["MODEL"]
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent
    with FileLock(root / "warm.lock"):
        if (root / "warm").exists():
            return
        if model not in [one.model for one in ollama.list().models]:
            ollama.pull(model)
        ollama.generate(model, "Hi", options={"num_predict": 1}, keep_alive="10m")
        (root / "warm").touch()
