"""Exercise 02/04: RMSNorm, SwiGLU, and the half of a modern block that they make."""
