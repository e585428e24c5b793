"""A command for tests of several processes: loads a folder on a mesh over all devices, and decodes a prompt.

`python -m tests.moejax.cli.orbax_decode orbax-decode FOLDER ...` prints which experts its process has read, then token
ids.
"""

from typing import Annotated, Any

import typer

import tests.moejax.cli.patient  # noqa: F401
from moejax.cli import console, main, options, startup
from moejax.cli.app import app
from moejax.cli.devices import Devices, Processes
from moejax.cli.groups import grouped
from moejax.cli.help import SETTINGS, Command

PROMPT = "A list is"


@app.command(cls=Command, context_settings=SETTINGS)
@grouped
def orbax_decode(
    folder: str,
    devices: Devices,
    processes: Processes,
    debug: options.Debug = False,
    mesh: Annotated[str, typer.Option()] = "",
) -> None:
    startup.enter(processes, debug=debug)
    startup.prepare_jax(devices, processes)
    import moejax
    from moejax._convert import OrbaxFolder

    read_into, names = OrbaxFolder.read_into, set[str]()

    def noted(self: OrbaxFolder, name: str, *rest: Any, **options: Any) -> None:
        names.add(name)
        read_into(self, name, *rest, **options)

    OrbaxFolder.read_into = noted
    model = moejax.load(folder, dtype="float32", mesh=mesh, dispatch="replicated")
    experts = {name.split(".")[4] for name in names if ".experts." in name}
    console.write(f"experts {' '.join(sorted(experts))}\n")
    tokens = moejax.decode(model, PROMPT, max_tokens=16, ignore_eos=True)[0].token_ids
    console.write(f"{' '.join(map(str, tokens))}\n")


if __name__ == "__main__":
    main()
