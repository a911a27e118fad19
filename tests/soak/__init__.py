"""Random ways of training, each measured and compared with brute force: ``make soak``.

A configuration has one of three good outcomes. It *agrees*: the table equals the recomputed one and
training was unchanged. It is *refused* by the package before the first step. It is *not runnable*,
with or without the monitor. Every other outcome is a failure.
"""
