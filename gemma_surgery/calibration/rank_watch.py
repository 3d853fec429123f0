"""Noticing that another rank has died: collective operations would wait for it for ever.

Every rank holds a connection to rank 0. A process that ends, however it ends, closes its connection; a
machine that vanishes is found out by TCP's own probes within half a minute.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from gemma_surgery.errors import SurgeryError

# Seconds: of silence before the first probe, between probes; and lost probes before a peer counts as gone.
PROBE_AFTER, PROBE_EVERY, PROBES = 10, 5, 3
CONNECT_SECONDS = 30.0
GOODBYE = b"\0"

# The greatest of the numbers that the ranks give.
Largest = Callable[[int], int]


class RankWatch:
    """Ends this process with an error when another rank is gone.

    Args:
        rank: this one.
        size: how many there are.
        host: of rank 0, as the others reach it.
        largest: a collective that tells all ranks where rank 0 listens.

    Raises:
        SurgeryError: no connection to rank 0.
    """

    def __init__(self, rank: int, size: int, host: str, largest: Largest) -> None:
        self._rank = rank
        self._links: dict[int, socket.socket] = {}
        try:
            if rank == 0:
                with socket.create_server(("", 0), backlog=size) as server:
                    server.settimeout(CONNECT_SECONDS)
                    largest(server.getsockname()[1])
                    while len(self._links) < size - 1:
                        link, _ = server.accept()
                        link.settimeout(CONNECT_SECONDS)
                        (other,) = struct.unpack("<I", _exactly(link, 4))
                        self._links[other] = link
            else:
                link = socket.create_connection((host, largest(0)), CONNECT_SECONDS)
                link.sendall(struct.pack("<I", rank))
                self._links[0] = link
        except OSError as error:
            raise SurgeryError(
                "ranks", f"cannot connect rank {rank} of {size} by way of {host}: {error}"
            ) from None
        for other, link in self._links.items():
            _probe(link)
            threading.Thread(target=self._listen, args=(other, link), daemon=True).start()

    def close(self) -> None:
        """Say that this rank ends because it is done."""
        for link in self._links.values():
            try:
                link.sendall(GOODBYE)
                link.close()
            except OSError:
                continue

    def _listen(self, other: int, link: socket.socket) -> None:
        try:
            said = link.recv(1)
        except OSError:
            said = b""
        if said == GOODBYE or link.fileno() < 0:
            return
        _give_up(f"need all ranks to the end, but rank {other} is gone")


@contextmanager
def alarm(seconds: float, message: str) -> Iterator[None]:
    """End the process with an error if what is inside takes longer."""
    timer = threading.Timer(seconds, _give_up, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def ring_host() -> str | None:
    """The address of rank 0 of MLX's ring backend, None with other backends, which see to it themselves."""
    file = os.environ.get("MLX_HOSTFILE")
    if file is None:
        return None
    try:
        hosts = json.loads(Path(file).read_text("utf-8"))
        return str(hosts[0][0]).rsplit(":", 1)[0]
    except (OSError, ValueError, LookupError, TypeError):
        raise SurgeryError(
            "ranks", f"need a list of addresses per rank, got something else in `{file}`"
        ) from None


def _give_up(message: str) -> NoReturn:
    print(f"error: [ranks] {message}\nhint: repeat the command with `--resume`", file=sys.stderr, flush=True)
    # The main thread waits inside a collective operation and cannot be interrupted.
    os._exit(1)


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise OSError("the connection ended")
        data += piece
    return data


def _probe(link: socket.socket) -> None:
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    for option, value in (
        (idle, PROBE_AFTER),
        (getattr(socket, "TCP_KEEPINTVL", None), PROBE_EVERY),
        (getattr(socket, "TCP_KEEPCNT", None), PROBES),
    ):
        if option is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, value)
