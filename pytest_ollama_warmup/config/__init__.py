"""What the user asked for, and where it was said."""
