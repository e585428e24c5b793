"""By which names a server may be asked for: a page elsewhere may have its own name point here (DNS rebinding)."""

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from moejax.serving.errors import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERYWHERE = ("", "0.0.0.0", "::")
MALFORMED = "the header Host must be one name or address, with a port or without"
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")  # with the underscores that services in containers have


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
        """Raises ApiError for a header that names something else, or nothing."""
        try:
            name = host_in(header)
        except ValueError as error:
            raise ApiError(400, MALFORMED, code="malformed_host") from error
        if self.anything or name in self.names or (self.addresses and _is_address(name)):
            return
        message = f"this server is not {name[:80]!r}: start it with --allowed-hosts {name[:80]} if it should be"
        raise ApiError(403, message, code="host_not_allowed")


def allowed_hosts(listens_on: str, more: Sequence[str]) -> AllowedHosts:
    """The hosts of a server: what it listens on, and `more`, of which "*" is everything.

    Raises:
        ValueError: for what is no name of a host.
    """
    given = frozenset(_allowed(name) for name in more if name != "*")
    own = listens_on.lower()
    if own in EVERYWHERE:
        names = LOOPBACK | {socket.gethostname().lower(), socket.getfqdn().lower()}
    elif own in LOOPBACK or (_is_address(own) and ipaddress.ip_address(own).is_loopback):
        names = LOOPBACK | {own}
    else:
        names = frozenset({own})
    return AllowedHosts(names=names | given, addresses=own in EVERYWHERE, anything="*" in more)


def host_in(header: str) -> str:
    """The host that a header names, without its port, in lower case.

    Raises:
        ValueError: for what is no host.
    """
    header = header.strip().lower()
    if "%" in header:  # the zone of an address, which may be any text
        raise ValueError(f"{header!r} has a zone or an escape")
    if _is_address(header):  # of version 6 without its brackets, as some clients have it
        return header
    parts = urlsplit(f"//{header}")  # a ValueError for half a bracket, and for a port that is none
    name, port = parts.hostname or "", parts.port
    bracketed = _is_address(name) and ":" in name
    rest = header.removeprefix(f"[{name}]" if bracketed else name)
    if not (bracketed or _NAME.fullmatch(name)) or (rest not in ("", ":") and (port is None or rest[0] != ":")):
        raise ValueError(f"{header!r} is no host")
    return name.rstrip(".")


def _allowed(name: str) -> str:
    try:
        host = host_in(name)
    except ValueError:
        host = None
    if host is None or host != name.lower().strip("[]"):
        raise ValueError(f"--allowed-hosts must be names or addresses without http:// and port, got {name!r}")
    return host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
