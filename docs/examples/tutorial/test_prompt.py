def test_prompt_is_short():
    assert len("Say hello.") < 100
