def test_summary(summarizer):
    assert summarizer("Green tea is brewed at seventy degrees.")


def test_short_text(summarizer):
    assert summarizer("Tea.")
