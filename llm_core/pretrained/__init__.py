"""Published weights in the book's own models, and back: name tables, file formats, tokenizers."""
