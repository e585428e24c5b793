"""`moejax`, whose processes wait long for each other: on a busy machine they may start, and compute, far apart.

`python -m tests.moejax.cli.patient decode ...`; importing it is enough for a command of a test's own.
"""

from moejax.cli import main, rendezvous

rendezvous.JOIN_SECONDS = 300
rendezvous.HEARTBEAT_SECONDS = 100

if __name__ == "__main__":
    main()
