"""Interpretation: looking inside a model that runs."""
