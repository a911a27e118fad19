"""Records on disk until the reference is known."""
