"""Programs compiled for accelerators that need not be there, and what is read from them."""
