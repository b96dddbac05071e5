"""Exercise 01/01: a neural language model as of 2003, from windows to the mean with another model."""
