"""CPU kernels in C++: compiled on first use by this machine's compiler, called by XLA on its own threads.

`reference.py` is the specification, the `.h` and `.cc` files are the kernels, `build.py` compiles them, `library.py`
names them to XLA, `ops.py` calls them.
"""

from moejax.ops.native.library import cannot_run
from moejax.ops.native.ops import attend, expert_ffn, linear, rms_norm, rotate_into_cache, route

__all__ = ["attend", "cannot_run", "expert_ffn", "linear", "rms_norm", "rotate_into_cache", "route"]
