"""The only part that touches a live model: from Lightning's hooks to rows of the table of probes."""
