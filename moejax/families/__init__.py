"""Kinds of checkpoints: how each is configured and what its weights are called. Imports no JAX."""
