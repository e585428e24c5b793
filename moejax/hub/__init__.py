"""Models by their id on Hugging Face: names, which of their files are needed, the cache, downloads. Imports no JAX."""
