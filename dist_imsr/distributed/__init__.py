"""Who owns which bytes: item rows, users, dense weights. Knows no strategy."""
