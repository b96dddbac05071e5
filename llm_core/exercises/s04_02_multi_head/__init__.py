"""Exercise 04/02: splitting and joining heads, and what each of them adds to the output."""
