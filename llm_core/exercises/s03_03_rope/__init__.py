"""Exercise 03/03: rotary positions and linear biases."""
