"""``python -m pytest_ollama_warmup``."""

import sys

from pytest_ollama_warmup.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
