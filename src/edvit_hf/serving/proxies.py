# SPDX-License-Identifier: Apache-2.0
"""Whom a request comes from, where proxies stand between: the nearest address that is none of the trusted proxies."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TypeAlias

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """Reads `X-Forwarded-For` from its right end.

    Every proxy appends whom it was asked by, so the right end is written by the nearest one and the left end by whoever
    likes. The client is the first from the right that no trusted proxy is; with `*` the rightmost one, since whoever
    that is wrote the rest. What is no address ends the search: the last hop that was one is taken.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted`: addresses and networks, or `*` alone; see `ServeConfig.trusted_proxies`."""
        self._anybody = "*" in trusted
        self._networks = [] if self._anybody else [_network(each) for each in trusted]

    def __bool__(self) -> bool:
        return self._anybody or bool(self._networks)

    def client(self, peer: str | None, forwarded: Iterable[bytes]) -> str | None:
        """Address of the client: of `peer`, who is connected, or of whom it asks for by these headers' values."""
        if not self._trusts(address_of(peer or "")):
            return peer
        found = peer
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            address = _forwarded(hop.strip())
            if address is None:
                return found
            found = str(address)
            if self._anybody or not self._trusts(address):
                return found
        return found

    def _trusts(self, address: _Address | None) -> bool:
        if self._anybody or address is None:
            return self._anybody
        return any(address.version == network.version and address in network for network in self._networks)


def address_of(text: str) -> _Address | None:
    """An address; an IPv4 one as such, however it is written. None: it is no address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _forwarded(hop: str) -> _Address | None:
    """One entry of the header: an address, perhaps with a port. Zones are of the proxy's own links, and of no use."""
    if hop.startswith("["):
        host, bracket, port = hop[1:].partition("]")
        is_whole = bracket and (not port or (port.startswith(":") and port[1:].isdecimal()))
        return address_of(host) if is_whole and "%" not in host else None
    if hop.count(":") == 1:
        hop, _, port = hop.partition(":")
        if not port.isdecimal():
            return None
    return None if "%" in hop else address_of(hop)


def _network(text: str) -> _Network:
    if "/" not in text:
        address = address_of(text.partition("%")[0])
        return ipaddress.ip_network(str(address))
    network = ipaddress.ip_network(text)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
    return network
