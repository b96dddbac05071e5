"""Generation: logits -> the next token, again and again. A model is anything with the shape of `LanguageModel`."""
