"""What leads where, for all five systems."""
