import dspy
import pytest

pytestmark = pytest.mark.requires_model("gemma3:270m")


def test_chat(lm):
    (reply,) = lm("Say hello.")
    assert reply


def test_program(lm):
    answer = dspy.Predict("question -> answer")
    assert answer(question="What is the capital of France?").answer
