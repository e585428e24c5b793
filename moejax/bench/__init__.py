"""Latency and throughput: of moejax alone, beside other systems, of a server, and against a baseline.

`latency` and `throughput` time a loaded model; `counted` says what a step reads and multiplies, `roofline` what this
machine could do in that time; `compare` runs peers, each in a process of its own (`worker`), and `standings` says what
became of them; `baseline` is the regression guard; `serving_load` puts a running server under load. Everything but the
runs themselves imports no JAX.
"""
