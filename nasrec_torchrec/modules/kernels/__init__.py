"""Kernels of our own, where those of PyTorch are far from what the hardware does."""
