"""Readers: files that hold a model's inputs, to arrays and requests."""
