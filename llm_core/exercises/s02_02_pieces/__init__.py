"""Exercise 02/02: one merge of byte-pair encoding, and the longest match of WordPiece."""
