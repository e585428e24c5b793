"""The command line: `moejax decode` and `moejax info`, one file each.

Importing it, asking for help, and every mistake that can be found without a model import no JAX.
"""

import os
import signal
import sys
import threading

INTERRUPTED = 128 + signal.SIGINT  # as a shell reports it


def main() -> None:
    """Runs the command in `sys.argv` and exits: 0 when it worked, 2 after an error, 130 after Ctrl-C."""
    _exit_on_interrupt()
    from moejax.cli.app import run  # here, because Ctrl-C may come while it is imported

    status = run(sys.argv[1:])
    if status != 0:
        # At once: as one of several processes this one would otherwise wait, on its way out, for the others to finish.
        os._exit(status)
    sys.exit(0)


def _exit_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once and in silence.

    Python would raise KeyboardInterrupt in the main thread: only when a compilation has ended, which may take many
    seconds, and in the middle of an import or of a callback of JAX, which turn it into other errors or drop it.
    A thread that waits for the signal depends on neither. All output is flushed when it is written.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background: Ctrl-C is meant for another
        return
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender)
    signal.signal(signal.SIGINT, lambda *_: None)
    threading.Thread(target=_exit_after_interrupt, args=(receiver,), daemon=True).start()


def _exit_after_interrupt(receiver: int) -> None:
    while os.read(receiver, 1) != bytes([signal.SIGINT]):
        pass
    stderr = sys.stderr.fileno()
    if os.isatty(stderr):
        os.write(stderr, b"\n")  # so that the shell's prompt begins on a line of its own
    os._exit(INTERRUPTED)
