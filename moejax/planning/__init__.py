"""Which split of a model over devices, and why: predictions from sizes and hardware figures. Imports no JAX.

`compare.compare_meshes` is the way in. What it says of a split can be checked: against the compiled program
(`compiled`), against the clock (`measured`), with this machine's own figures (`calibration`); only these use JAX.
"""
