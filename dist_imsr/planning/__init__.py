"""What a run would need, before anybody rents it: memory, links and time, from counted bytes and stated rates."""
