"""Measurements of decoding and serving."""
