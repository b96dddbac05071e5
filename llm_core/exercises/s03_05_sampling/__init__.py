"""Exercise 03/05: the next token's distribution, and the rule of speculative decoding."""
