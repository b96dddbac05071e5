"""A whole training run from one file: the configuration, what it describes, and the model that came of it."""
