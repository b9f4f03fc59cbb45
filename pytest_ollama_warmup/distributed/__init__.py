"""What pytest-xdist changes."""
