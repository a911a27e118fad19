"""One ``fit``: joins recording, evaluation and reporting."""
