"""What the plugin costs, measured."""
