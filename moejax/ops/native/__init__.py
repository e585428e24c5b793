"""CPU kernels in C++: compiled when a model is loaded by this machine's compiler, called by XLA on its own threads.

The `.h` and `.cc` files are the kernels, `build.py` compiles them, `library.py` names them to XLA, `ops.py` calls them.
"""
