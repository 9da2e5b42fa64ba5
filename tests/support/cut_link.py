# SPDX-License-Identifier: Apache-2.0
"""A TCP link to a port of this machine that a test can cut like a cable: nothing is refused, nothing arrives."""

import contextlib
import selectors
import socket
import threading


class CutLink:
    """Forwards bytes in both directions until it is cut; what was under way is lost."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._is_cut = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "CutLink":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def cut(self) -> None:
        """From here on nothing passes, and nobody is told."""
        self._is_cut.set()

    def mend(self) -> None:
        """What is sent from here on passes; connections from before are broken, as they have lost bytes."""
        self._is_cut.clear()

    def _serve(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._listening, selectors.EVENT_READ)
        others: dict[socket.socket, socket.socket] = {}
        spoilt: set[socket.socket] = set()
        while not self._ended.is_set():
            for key, _ in selector.select(0.02):
                if key.fileobj is self._listening:
                    near, _ = self._listening.accept()
                    far = socket.create_connection(("127.0.0.1", self._target))
                    for one, other in ((near, far), (far, near)):
                        others[one] = other
                        selector.register(one, selectors.EVENT_READ)
                    continue
                self._forward(key.fileobj, others, spoilt, selector)
        for each in [*others, self._listening]:
            each.close()
        selector.close()

    def _forward(self, one, others, spoilt, selector) -> None:
        try:
            content = one.recv(1 << 16)
        except OSError:
            content = b""
        other = others[one]
        if content and self._is_cut.is_set():
            spoilt |= {one, other}
            return
        if content and one not in spoilt:
            with contextlib.suppress(OSError):
                other.sendall(content)
                return
        for each in (one, other):
            with contextlib.suppress(KeyError):
                selector.unregister(each)
            each.close()
