"""PyTorch: modules, programs, TorchScript, weights."""
