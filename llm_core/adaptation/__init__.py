"""Adaptation: teach a finished model one more thing. Supervised fine-tuning, LoRA, and learning from preferences."""
