import pytest


class Summarizer:
    def __init__(self, client, model):
        self.client, self.model = client, model

    def __call__(self, text):
        prompt = f"Summarize in one sentence: {text}"
        return self.client.generate(self.model.name, prompt, options=self.model.options).response


@pytest.fixture(scope="session")
def summarizer(ollama_client, ollama_models):
    return Summarizer(ollama_client, ollama_models.default)
