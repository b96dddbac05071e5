"""Exercise 01/03: negative sampling, its loss and its gradients."""
