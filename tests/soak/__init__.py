"""Randomly drawn ways to train, each compared with the slow, obvious way: ``python -m tests.soak --help``."""
