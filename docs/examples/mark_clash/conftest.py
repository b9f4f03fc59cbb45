import importlib.util

import pytest


def pytest_runtest_setup(item):
    for mark in item.iter_markers("requires_model"):
        if importlib.util.find_spec(mark.args[0]) is None:
            pytest.skip(f"spaCy pipeline {mark.args[0]} is not installed")
