"""A data set and its run brought up to date: append, test, train, publish; the command of a timer."""
