"""Exercise 04/06: parameters, FLOPs and bytes of a Llama, from its sizes."""
