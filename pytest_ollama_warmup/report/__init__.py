"""A record in, text out."""
