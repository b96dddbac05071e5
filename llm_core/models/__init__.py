"""Models: token ids -> logits. One file is one frozen config and one class that assembles layers."""
