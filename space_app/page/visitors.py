# SPDX-License-Identifier: Apache-2.0
"""Who asks: the address that a request came from, as far as nobody can make it up. Places are shared out by it."""

import ipaddress
from collections.abc import Sequence

from edvit_hf.serving.proxies import Proxies, address_of

_INSIDE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")
_HOPS = Proxies((*_INSIDE, "::1", "fc00::/7", "fe80::/10"))
_NEAREST = Proxies(("*",))
_A_HOP = "127.0.0.1"
_NETWORK_BITS = 64  # of an IPv6 address: what one connection gets, with any number of addresses in it


def visitor_address(peer: str | None, forwarded: Sequence[bytes], *, is_space: bool) -> str | None:
    """The address to count by; of IPv6, where its network begins. None: nothing is known.

    On a Space everything comes through proxies of the Hub. Each appends whom it was asked by, so the header is read
    from its right end: the first address that is none of a private network is the visitor's, and where all are, the
    rightmost one is. What stands left of it is whatever the visitor sent.

    Args:
        peer: Who is connected.
        forwarded: Values of `X-Forwarded-For`, in order.
        is_space: Whether the page is a Space of the Hub. Elsewhere the header is left to the server, which believes the
            proxies in FORWARDED_ALLOW_IPS.
    """
    if is_space and forwarded:
        found = _HOPS.client(_A_HOP, forwarded)
        peer = _NEAREST.client(peer, forwarded) if _is_inside(found) else found
    address = address_of(peer or "")
    if address is None or address.version == 4:
        return peer if address is None else str(address)
    return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False).network_address)


def _is_inside(text: str | None) -> bool:
    return _HOPS.client(text, [b"192.0.2.1"]) != text
