"""Exercise 04/05: losses of tokens, perplexity and bits per byte."""
