"""Preload two models, and say which one is not ready."""

import sys

from pytest_ollama_warmup import preload

record = preload("llama3.2:1b nomic-embed-text", pull="missing")
for outcome in record.failed:
    print(outcome.model, outcome.error)
sys.exit(bool(record.failed))
