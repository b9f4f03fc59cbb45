"""Each module alone: no server, no pytest run inside."""
