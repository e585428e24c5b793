"""JAX's settings for the command line. To be called before the first use of JAX."""

import importlib.util
import logging
from collections.abc import Callable

from moejax.cli import console
from moejax.cli.devices import Devices, Processes
from moejax.cli.processes import run_below_parent
from moejax.cli.rendezvous import check_count, join
from moejax.runtime.program_cache import keep_programs

_HERE, _ALONE = Devices(), Processes()


def enter(processes: Processes, *, debug: bool) -> None:
    """What a command does first: as one of several processes it goes on below a parent, and only process 0 prints.

    Raises:
        typer.Exit: in the parent, when the command has ended.
    """
    if processes.several:
        run_below_parent(debug=debug)
        if processes.process_id not in (None, 0):
            console.print_errors_only()


def prepare_jax(
    devices: Devices = _HERE, processes: Processes = _ALONE, *, compile_cache: bool = True, quiet: bool = False
) -> None:
    """Starts JAX on `devices`, with the other processes if any, and with or without a persistent compilation cache.

    To be called after `enter`. Of several processes only the first prints from then on; the others print errors.
    A cache folder that cannot be written is a warning: everything works, only slower the next time.

    Raises:
        ValueError: when JAX finds no device, cannot simulate any, or the processes do not find each other.
    """
    import jax

    from moejax.runtime.accelerators import tell_unused_accelerator
    from moejax.runtime.platform import visible_devices

    if quiet:
        logging.getLogger("moejax").setLevel(logging.ERROR)
    else:
        show_log("moejax.ops.native.build")
        show_log("moejax.runtime.accelerators", console.warn)
    # JAX's own line of a card says neither what to install nor how to do without it.
    logging.getLogger("jax._src.xla_bridge").addFilter(lambda record: "may be present" not in record.getMessage())
    if devices.simulate_devices is not None:
        jax.config.update("jax_num_cpu_devices", devices.simulate_devices)
    if processes.several:
        join(processes)
    platform = visible_devices()[0].platform
    if devices.simulate_devices is None:
        tell_unused_accelerator()
    if devices.simulate_devices is not None and platform != "cpu":
        raise ValueError(
            f"--simulate-devices simulates CPU devices, but JAX found {platform} devices; set the environment variable "
            "JAX_PLATFORMS=cpu"
        )
    if processes.several:
        check_count(processes)
        if jax.process_index() != 0:
            console.print_errors_only()
    _configure_cache(compile_cache=compile_cache, quiet=quiet)


def check_extra(extra: str, *modules: str) -> None:
    """Raises ValueError when one of the modules that come with an extra of this package is missing, before any work."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise ValueError(f"this command needs {missing[0]}, which is not installed: pip install 'moejax[{extra}]'")


def show_log(name: str, say: Callable[[str], None] = console.remark) -> None:
    """What a module logs of its work is said in a line on stderr; on a terminal one that passes makes room."""
    logger, handler = logging.getLogger(name), logging.Handler()

    def emit(record: logging.LogRecord) -> None:
        show = console.passing if getattr(record, "passing", False) else say
        show(record.getMessage())

    handler.emit = emit
    logger.setLevel(logging.INFO)
    logger.propagate, logger.handlers = False, [handler]


def _configure_cache(*, compile_cache: bool, quiet: bool) -> None:
    import jax

    if not compile_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    keep_programs(None if quiet else console.warn)
