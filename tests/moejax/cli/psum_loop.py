"""A command for tests of several processes: psums over all their devices, quick to compile and as long as is wanted.

`python -m tests.moejax.cli.psum_loop loop ...` runs it as `moejax loop` would run. Process 0 prints a line per phase.
"""

import sys
import time
from typing import Annotated

import typer

from moejax.cli import console, main, options, rendezvous, startup
from moejax.cli.app import app
from moejax.cli.devices import Devices, Processes
from moejax.cli.groups import grouped
from moejax.cli.help import SETTINGS, Command


@app.command(cls=Command, context_settings=SETTINGS)
@grouped
def loop(
    where: Devices,
    processes: Processes,
    debug: options.Debug = False,
    seconds: Annotated[float, typer.Option(help="How long to go on.")] = 0.0,
    unrolled: Annotated[int, typer.Option(help="Psums in one program: many compile for long.")] = 1,
    fail_in: Annotated[int, typer.Option(help="The process that raises an error at the end.")] = -1,
    late: Annotated[int, typer.Option(help="The process that ends after the others.")] = -1,
    late_seconds: Annotated[float, typer.Option(help="How long after them.")] = 1.0,
    join_seconds: Annotated[int, typer.Option(help="How long to wait for the others.")] = rendezvous.JOIN_SECONDS,
    heartbeat_seconds: Annotated[int, typer.Option(help="How long a silent one lives.")] = rendezvous.HEARTBEAT_SECONDS,
    linger: Annotated[float, typer.Option(help="Seconds between joining the others and seeing their devices.")] = 0.0,
    read_stdin: Annotated[bool, typer.Option(help="Print what stdin holds.")] = False,
) -> None:
    startup.enter(processes, debug=debug)
    rendezvous.JOIN_SECONDS = join_seconds
    rendezvous.HEARTBEAT_SECONDS = heartbeat_seconds

    def join(processes: Processes) -> None:
        rendezvous.join(processes)
        if processes.process_id == 0:
            console.write("joined\n")
        time.sleep(linger)

    startup.join = join
    startup.prepare_jax(where, processes, compile_cache=False)
    import jax
    import numpy as np

    console.remark("a remark")
    console.warn("a warning")
    console.write(f"{jax.process_count()} processes, {jax.device_count()} devices\n")
    if read_stdin:
        console.write(sys.stdin.read())
    mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("x")

    def body(x: jax.Array) -> jax.Array:
        for _ in range(unrolled):
            x = jax.lax.psum(x, "x") / np.float32(jax.device_count())
        return x

    step = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec))
    ones = np.ones(jax.device_count(), np.float32)
    x = jax.make_array_from_callback(ones.shape, jax.NamedSharding(mesh, spec), lambda index: ones[index])
    console.write("compiling\n")
    x = step(x).block_until_ready()
    console.write("looping\n")
    # Counted, not timed: all processes must take the same number of steps.
    for _ in range(int(seconds / 0.01)):
        x = step(x).block_until_ready()
        time.sleep(0.01)
    assert x.addressable_data(0)[0] == 1
    if jax.process_index() == fail_in:
        raise ValueError("an error of one process")
    console.write("done\n")
    if jax.process_index() == late:
        time.sleep(late_seconds)


if __name__ == "__main__":
    main()
