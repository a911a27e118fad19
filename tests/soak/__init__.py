"""Ways of training drawn at random, each compared with the slow way: ``make soak``.

A configuration *agrees* (the table is the recomputed one, training was not moved), is *refused* (by
the package, before the first step), or is *not runnable* (nor is it without the monitor). Every
other outcome is a failure.
"""
