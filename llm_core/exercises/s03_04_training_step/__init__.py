"""Exercise 03/04: clipping, and a training step that learns from a batch in parts."""
