"""The work: which models, pulled and loaded how, once per run. Knows nothing of pytest."""
