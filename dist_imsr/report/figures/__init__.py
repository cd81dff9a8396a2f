"""The figures of a report, one module for each section, drawn from the tables alone."""
