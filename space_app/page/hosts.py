# SPDX-License-Identifier: Apache-2.0
"""Names by which browsers may call the page, and pages of others that may not have theirs ask it.

A web page can point a name of its own at this machine and have a visitor's browser ask here ("DNS rebinding"): the name
in the `Host` header gives it away. Addresses cannot be pointed anywhere, so they pass where others can reach the page.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from edvit_hf.serving.exposure import host_name, is_cross_origin

NAMES_VARIABLE = "EDVIT_SPACE_HOSTS"
"""Further names, separated by commas: of a proxy in front of the page, say."""
_LOOPBACK = "localhost"
_OF_THE_HUB = ("hf.space", "huggingface.co")


class Hosts:
    """What the environment says of where the page is reached."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Read GRADIO_SERVER_NAME, EDVIT_SPACE_HOSTS and, where the page runs as a Space of the Hub, SPACE_HOST."""
        told = os.environ if environment is None else environment
        bound = told.get("GRADIO_SERVER_NAME") or "127.0.0.1"
        self._is_local = bound == _LOOPBACK or _is_loopback(bound)
        self.is_space = bool(told.get("SPACE_ID"))
        names = [_LOOPBACK, bound, *told.get(NAMES_VARIABLE, "").split(",")]
        if self.is_space:
            names += told.get("SPACE_HOST", "").split(",")
        if not self._is_local:
            names += [socket.gethostname(), socket.getfqdn()]
        self._names = {name.strip().strip("[]").lower() for name in names} - {""}

    def takes(self, header: str | None) -> bool:
        """Whether the page may be called by the name in this `Host` header."""
        name = host_name(header or "")
        if name in self._names or (self.is_space and _is_of_the_hub(name)):
            return True
        return _is_loopback(name) if self._is_local else _is_address(name)

    def is_foreign(self, origin: str | None, header: str | None) -> bool:
        """Whether a browser says in its `Origin` header that a page of another site asks."""
        if origin is None or not is_cross_origin(origin, header or ""):
            return False
        try:
            name = (urlsplit(origin).hostname or "").lower()
        except ValueError:
            return True
        return not (self.is_space and _is_of_the_hub(name))


def _is_of_the_hub(name: str) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in _OF_THE_HUB)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return _is_address(name.strip("[]")) and ipaddress.ip_address(name.strip("[]")).is_loopback
