from pathlib import Path

import pytest
import vcr

recorder = vcr.VCR(
    cassette_library_dir=str(Path(__file__).parent / "cassettes"),
    match_on=["method", "path", "body"],
)


@pytest.mark.requires_model("llama3.2:1b")
@recorder.use_cassette("greeting.yaml")
def test_greeting(ollama_client, ollama_model):
    assert ollama_client.generate(ollama_model, "Say hello.").response
