import pytest


@pytest.fixture(scope="session")
def vcr_config():
    return {
        # Not by host and port: then the cassettes also fit another server.
        "match_on": ["method", "path", "body"],
        "filter_headers": ["authorization"],
    }
