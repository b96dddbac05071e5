"""Exercise 03/07: the gradients of several workers, the bytes of a ring, a step with a loss scale."""
