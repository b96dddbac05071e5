"""Training with several processes: the data, the weights, each layer or the stack of layers is divided among them."""
