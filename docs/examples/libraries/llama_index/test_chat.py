import pytest
from llama_index.core.llms import ChatMessage


@pytest.mark.requires_model("gemma3:270m,num_ctx=8192")
def test_chat(llm):
    reply = llm.chat([ChatMessage(role="user", content="Say hello.")])
    assert reply.message.content


@pytest.mark.requires_model("gemma3:270m,num_ctx=8192")
def test_completion(llm):
    assert llm.complete("Say hello.").text


@pytest.mark.requires_model("all-minilm")
def test_embeddings(embedder):
    hello, cat = embedder.get_text_embedding_batch(["Hello", "A cat"])
    assert len(hello) == len(cat)
