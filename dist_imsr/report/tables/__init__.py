"""The tables of a report, one module for each section; each figure is drawn from these alone."""
