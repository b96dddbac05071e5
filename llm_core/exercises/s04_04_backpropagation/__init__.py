"""Exercise 04/04: the backward passes of softmax, cross-entropy and attention, by hand."""
