"""Rankings without a training run, which any run can be compared with."""
