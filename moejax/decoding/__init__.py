"""Decoding: requests in, tokens and text out."""
