"""The operations of the forward pass, and the ways to compute each."""
