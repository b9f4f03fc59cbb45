from conftest import MODEL


def test_greeting(client):
    assert client.generate(MODEL, "Say hello.").response
