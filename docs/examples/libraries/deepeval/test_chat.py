import pytest
from deepeval.metrics import GEval
from deepeval.test_case import LLMTestCase, SingleTurnParams

pytestmark = pytest.mark.requires_model("gemma3:270m")


def test_greeting(judge):
    metric = GEval(
        name="Politeness",
        evaluation_steps=["Check that the actual output greets the reader."],
        evaluation_params=[SingleTurnParams.ACTUAL_OUTPUT],
        model=judge,
    )
    score = metric.measure(LLMTestCase(input="Say hello.", actual_output="Hello!"))
    assert 0 <= score <= 1
