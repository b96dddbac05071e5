"""Exercise 03/02: layer norm, dropout and the pre-norm block."""
