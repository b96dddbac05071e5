"""Adaptation: teach a finished model one more thing.

Supervised fine-tuning, LoRA, learning from preferences, and from rewards that can be checked.
"""
