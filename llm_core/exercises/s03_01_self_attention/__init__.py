"""Exercise 03/01: causal self-attention with several heads."""
