"""Exercise 05/02: a MinHash signature, what it estimates, and when two of them meet."""
