import pytest

pytestmark = pytest.mark.requires_model("nomic-embed-text", capabilities=["embedding"])


def test_a_document_is_nearest_to_itself(index):
    document = "Black tea is brewed with boiling water."
    assert index.nearest(document) == document


def test_equal_texts_have_equal_vectors(index):
    first, second = index.embed(["green tea", "green tea"])
    assert first == pytest.approx(second)
