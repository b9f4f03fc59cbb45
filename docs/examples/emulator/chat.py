"""A client that waits for a load, and tries again while Ollama is busy, broken or away."""

import time

import httpx
import ollama

MODEL = "llama3.2:1b"


def ask(question: str, *, timeout_s: float = 60, tries: int = 6) -> str:
    """Return the model's answer, after several tries if need be."""
    client = ollama.Client(timeout=timeout_s)
    messages = [{"role": "user", "content": question}]
    for attempt in range(1, tries + 1):
        try:
            parts = client.chat(MODEL, messages, stream=True)
            return "".join(part["message"]["content"] for part in parts)
        except httpx.TimeoutException:
            raise
        except (ollama.ResponseError, httpx.TransportError) as error:
            if getattr(error, "status_code", 503) != 503 or attempt == tries:
                raise
        time.sleep(0.1 * 2**attempt)
    raise ValueError("tries must be at least 1")
