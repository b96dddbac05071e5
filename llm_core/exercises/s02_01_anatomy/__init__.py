"""Exercise 02/01: parameters of the three families, from their sizes."""
