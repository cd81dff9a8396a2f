"""A grid of strategies, base models, seeds and data sets: trained under one budget, and compared with paired tests."""
