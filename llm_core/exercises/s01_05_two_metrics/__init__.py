"""Exercise 01/05: two metrics of the same predictions, and the bits that were learned."""
