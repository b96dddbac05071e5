"""Exercise 03/06: a batch of sentences, its targets and its loss."""
