"""The operations in XLA."""
