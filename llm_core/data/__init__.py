"""Data: texts by name, token ids on disk, and the batch of every step of training."""
