"""The command line outside pytest."""
