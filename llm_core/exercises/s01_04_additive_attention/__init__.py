"""Exercise 01/04: additive attention over padded sources."""
