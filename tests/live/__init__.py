"""Tests against a real Ollama server, with tiny models from a registry of their own."""
