"""Pull and warm Ollama models once per pytest run, before the tests that need them."""
