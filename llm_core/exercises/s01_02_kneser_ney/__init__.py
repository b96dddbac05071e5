"""Exercise 01/02: Kneser-Ney smoothing from a table of counts."""
