import pytest

DOCUMENTS = [
    "Green tea is brewed at seventy degrees.",
    "Black tea is brewed with boiling water.",
    "Parcels take two days inside the country.",
]


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


class Index:
    def __init__(self, client, model):
        self.client, self.model = client, model
        self.vectors = self.embed(DOCUMENTS)

    def embed(self, texts):
        return self.client.embed(self.model, texts).embeddings

    def nearest(self, text):
        (vector,) = self.embed([text])
        return min(DOCUMENTS, key=lambda one: distance(vector, self.vectors[DOCUMENTS.index(one)]))


@pytest.fixture(scope="session")
def index(ollama_client, ollama_models):
    return Index(ollama_client, ollama_models["nomic-embed-text"].name)
