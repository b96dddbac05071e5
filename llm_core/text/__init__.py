"""Text: strings <-> token ids. Nothing here needs torch."""
