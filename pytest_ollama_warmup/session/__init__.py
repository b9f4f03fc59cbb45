"""One pytest run in one process."""
