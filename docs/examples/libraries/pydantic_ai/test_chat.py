from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import NativeOutput

pytestmark = pytest.mark.requires_model("gemma3:270m")


class Review(BaseModel):
    mood: Literal["happy", "angry"]


def test_text(agent):
    assert agent.run_sync("Say hello.").output


def test_structured_output(agent):
    result = agent.run_sync("What a lovely day!", output_type=NativeOutput(Review))
    assert result.output.mood in {"happy", "angry"}
