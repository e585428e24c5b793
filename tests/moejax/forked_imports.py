"""What `forked` imports before it forks: all that converting needs, and no device of JAX is started."""

import orbax.checkpoint  # noqa: F401

import moejax.cli.app
import moejax.conversion
import moejax.loading  # noqa: F401
