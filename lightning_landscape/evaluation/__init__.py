"""Recorded steps again, each in its own state, at other parameters."""
