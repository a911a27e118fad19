"""Many ways of training drawn at random, each measured and compared with the slow way: ``make soak``.

A configuration comes out as one of three: it *agrees* (the table is the recomputed one, training was not moved), it is
*refused* (by the package, before the first step), or it is *not runnable* (without the monitor neither). All else is a failure.
"""
