"""When requests and tokens crossed the loopback interface, for any client: kernel stamps of a packet socket.

``python bench_tap.py PORT`` listens until its standard input closes, then prints one JSON line: per request to
``/v1/completions`` its number (``X-Request-Id: qmeter-<n>``, else -1), the receive stamps of the request's last
segment, of the first segment with a token, and of the last one, in ns on CLOCK_MONOTONIC, and how many packets the
socket dropped. Needs CAP_NET_RAW; it reads only the loopback interface and only this port, and keeps no content.
"""

from __future__ import annotations

import ctypes
import json
import re
import select
import socket
import struct
import sys
import time
from typing import Any

from qmeter.load.stamps import ClockAnchors

SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
SOL_PACKET, PACKET_STATISTICS = 263, 6
ETH_P_IP = 0x0800
SNAP_BYTES = 900
BUFFER_BYTES = 64 * 2**20
_ID = re.compile(rb"(?i)\r\nx-request-id: *qmeter-(\d+)")


def port_filter(port: int) -> bytes:
    """A classic BPF program over the IP header on: TCP from or to ``port``, the first :data:`SNAP_BYTES`."""
    code = [
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 0, 6, 6),  # TCP, else drop
        (0xB1, 0, 0, 0),  # X = header length
        (0x48, 0, 0, 0),  # A = source port
        (0x15, 2, 0, port),
        (0x48, 0, 0, 2),  # A = destination port
        (0x15, 0, 1, port),
        (0x06, 0, 0, SNAP_BYTES),
        (0x06, 0, 0, 0),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in code)


class Watch:
    """What the packets of one port say, segment by segment."""

    def __init__(self, port: int):
        self._port = port
        self._open: dict[int, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []

    def take(self, packet: bytes, at_ns: int) -> None:
        """One packet from its IP header on, and its stamp."""
        start = (packet[0] & 15) * 4
        source, target = struct.unpack_from("!HH", packet, start)
        data = packet[start + (packet[start + 12] >> 4) * 4 :]
        if not data:
            return
        if target == self._port:
            self._asked(source, data, at_ns)
        elif (row := self._open.get(target)) is not None:
            if row["first_ns"] is None and b"data: " in data:
                row["first_ns"] = at_ns
            if b'"text"' in data:
                row["last_ns"] = at_ns

    def _asked(self, source: int, data: bytes, at_ns: int) -> None:
        if data.startswith(b"POST ") and b"/completions" in data[:80]:
            row: dict[str, Any] = {"id": -1, "begun_ns": at_ns, "asked_ns": at_ns, "first_ns": None, "last_ns": None}
            self._open[source] = row
            self.rows.append(row)
        elif data.startswith(b"GET "):
            self._open.pop(source, None)
            return
        found = self._open.get(source)
        if found is not None and found["first_ns"] is None:
            found["asked_ns"] = at_ns
            if number := _ID.search(data):
                found["id"] = int(number[1])


def main() -> None:
    port = int(sys.argv[1])
    code = port_filter(port)
    buffer = ctypes.create_string_buffer(code)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(code) // 8, ctypes.addressof(buffer)))
        try:
            tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except OSError:
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        tap.bind(("lo", 0))
        tap.setblocking(False)
        listen(tap, Watch(port))


def listen(tap: socket.socket, watch: Watch) -> None:
    """Read until standard input closes; print what was seen."""
    anchors, kept = ClockAnchors(), []
    anchors.note()
    print("ready", flush=True)
    noted = time.monotonic()
    ended = False
    while not ended:
        for source in select.select([tap, sys.stdin], [], [], 0.1)[0]:
            ended = ended or source is sys.stdin
        if time.monotonic() - noted > 0.1:
            anchors.note()
            noted = time.monotonic()
        while True:
            try:
                packet, ancillary, _, address = tap.recvmsg(SNAP_BYTES, 64)
            except BlockingIOError:
                break
            if address[2] != socket.PACKET_OUTGOING and ancillary:
                seconds, nanoseconds = struct.unpack_from("@qq", ancillary[0][2])
                kept.append((packet, seconds * 1_000_000_000 + nanoseconds, time.monotonic_ns()))
    anchors.note()
    import numpy as np

    stamps, clock = anchors.to_monotonic(np.asarray([k[1] for k in kept], np.int64),
                                         np.asarray([k[2] for k in kept], np.int64))  # fmt: skip
    for (packet, _, _), at_ns in zip(kept, stamps.tolist(), strict=True):
        watch.take(packet, at_ns)
    _, dropped = struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    said = {"rows": watch.rows, "packets": len(kept), "dropped": dropped, "unstamped": int(clock.sum())}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
