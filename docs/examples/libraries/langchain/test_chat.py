import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate


@pytest.mark.requires_model("gemma3:270m")
def test_chain(llm):
    prompt = ChatPromptTemplate.from_template("Say hello in {language}.")
    chain = prompt | llm | StrOutputParser()
    assert chain.invoke({"language": "French"})


@pytest.mark.requires_model("gemma3:270m")
def test_streamed(llm):
    assert "".join(chunk.content for chunk in llm.stream("Say hello."))


@pytest.mark.requires_model("all-minilm")
def test_embeddings(embedder):
    hello, cat = embedder.embed_documents(["Hello", "A cat"])
    assert len(hello) == len(cat)
