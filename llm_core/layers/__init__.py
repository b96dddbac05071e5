"""Layers: functions and modules from tensors to tensors. No file here imports another one of this folder."""
