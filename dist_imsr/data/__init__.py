"""Raw logs -> spans on disk -> batches. Knows no model."""
