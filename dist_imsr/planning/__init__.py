"""What a run needs, without any device: memory, links and time, from counted bytes and stated rates."""
