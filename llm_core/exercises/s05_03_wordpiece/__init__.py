"""Exercise 05/03: a step of WordPiece's training by likelihood."""
