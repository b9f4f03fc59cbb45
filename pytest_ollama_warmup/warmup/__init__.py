"""The work: which models, brought how, once per run. Knows nothing of pytest."""
