"""Exercise 02/03: who may attend to whom, in the three families."""
