"""Training: one step of learning, and what it needs. A model is anything that turns inputs into logits."""
