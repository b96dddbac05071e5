"""A model behind an address: the HTTP interface that OpenAI's clients speak, on this machine."""
