"""Smaller and quicker models: quantised weights, and linear layers for generation."""
