"""The Ollama server: its addresses, names and API. Knows nothing of warm-ups."""
