import pytest
from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage

pytestmark = pytest.mark.requires_model("gemma3:270m")


def test_generator(generator):
    result = generator.run([ChatMessage.from_user("Say hello.")])
    assert result["replies"][0].text


def test_pipeline(generator):
    template = [ChatMessage.from_user("Say hello in {{ language }}.")]
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder(template, required_variables="*"))
    pipeline.add_component("llm", generator)
    pipeline.connect("prompt.prompt", "llm.messages")
    result = pipeline.run({"prompt": {"language": "French"}})
    assert result["llm"]["replies"][0].text
