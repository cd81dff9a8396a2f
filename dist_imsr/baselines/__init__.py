"""What counting gets: rankings without a model, which any run can be held against."""
