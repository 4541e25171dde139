"""Workflows: what a command does that takes several of the parts below."""
