"""A run read back from its files alone, whole or as far as it can be read."""
