"""One HTML page from run folders and comparisons: tables are computed first, figures are drawn from them alone."""
