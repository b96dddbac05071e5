"""Exercise 04/01: scaled dot-product attention from its formula."""
