"""Exercise 04/03: the article's worked example, with numbers."""
