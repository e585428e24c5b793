"""A command for tests of several processes: decodes two prompts with the bundled checkpoint on a mesh over all devices.

`python -m tests.moejax.cli.mesh_decode mesh-decode ...` prints "loaded", then the token ids of each prompt.
"""

from typing import Annotated

import typer

from moejax.cli import console, devices, main, options, startup
from moejax.cli.app import app
from moejax.cli.help import SETTINGS, Command

PROMPTS = ["A list is", "The import statement is used"]


@app.command(cls=Command, context_settings=SETTINGS)
def mesh_decode(
    coordinator_address: devices.CoordinatorAddress = None,
    num_processes: devices.NumProcesses = None,
    process_id: devices.ProcessId = None,
    simulate_devices: devices.SimulateDevices = None,
    debug: options.Debug = False,
    mesh: Annotated[str, typer.Option()] = "",
    dispatch: Annotated[str, typer.Option()] = "auto",
    max_tokens: Annotated[int, typer.Option()] = 32,
) -> None:
    where = devices.Devices(
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
        simulate_devices=simulate_devices,
    )
    startup.enter(where, debug=debug)
    startup.prepare_jax(where)
    import moejax

    model = moejax.load("demo", dtype="float32", mesh=mesh, dispatch=dispatch)
    console.write("loaded\n")
    results = moejax.decode(model, PROMPTS, max_tokens=max_tokens, ignore_eos=True)
    for result in results:
        console.write(f"{' '.join(map(str, result.token_ids))}\n")


if __name__ == "__main__":
    main()
