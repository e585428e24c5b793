"""The forward pass: layers, attention and its cache."""
