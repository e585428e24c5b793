"""By which names a server may be asked for: a page elsewhere may have its own name point here (DNS rebinding)."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from moejax.serving.errors import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = ("", "0.0.0.0", "::")


@dataclass(frozen=True, kw_only=True)
class AllowedHosts:
    """What the header `Host` may name.

    names: hosts, lower case.  addresses: whether any address may be named, which no name server can have redirected.
    anything: whether all else may be, too.
    """

    names: frozenset[str] = LOOPBACK
    addresses: bool = False
    anything: bool = False

    def check(self, header: str) -> None:
        """Raises ApiError for a header that names something else."""
        name = host_in(header)
        if self.anything or name in self.names or (self.addresses and _is_address(name)):
            return
        message = f"this server is not {name[:80]!r}: start it with --allowed-hosts {name[:80]} if it should be"
        raise ApiError(403, message, code="host_not_allowed")


def allowed_hosts(listens_on: str, more: Sequence[str]) -> AllowedHosts:
    """The hosts of a server: what it listens on, and `more`, of which "*" is everything.

    Raises:
        ValueError: for what is no name of a host.
    """
    for name in more:
        if not name or host_in(name) != name.lower().strip("[]") or any(c in "/ @" for c in name):
            raise ValueError(f"--allowed-hosts must be names or addresses without http:// and port, got {name!r}")
    given = frozenset(host_in(name) for name in more)
    own = listens_on.lower()
    if own in EVERYWHERE:
        names = LOOPBACK | {socket.gethostname().lower(), socket.getfqdn().lower()}
    elif own in LOOPBACK or (_is_address(own) and ipaddress.ip_address(own).is_loopback):
        names = LOOPBACK | {own}
    else:
        names = frozenset({own})
    return AllowedHosts(names=names | given, addresses=own in EVERYWHERE, anything="*" in more)


def host_in(header: str) -> str:
    """The host that a header names, without its port, in lower case."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    name, colon, port = header.rpartition(":")
    return (name if colon and ":" not in name and port.isdecimal() else header).rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
