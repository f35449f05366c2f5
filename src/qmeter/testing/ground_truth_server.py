"""The ground truth in pure Python, for hosts without a C compiler; arguments, routes and log as ``ground_truth.c``.

``python -m qmeter.testing.ground_truth_server TTFT_NS ITL_NS PER_EVENT PORT``. It knows completions and chat
completions, streamed; not ``/generate``.
"""

from __future__ import annotations

import gc
import heapq
import json
import re
import select
import socket
import struct
import sys
import time

from qmeter.load import stamps

SPIN_NS = 2_000_000
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_ID = re.compile(rb"(?i)\r\nx-request-id: *qmeter-(\d+)")
_HEAD = (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
_MODELS = b'{"object":"list","data":[{"id":"truth","object":"model","created":1700000000,"owned_by":"qmeter"}]}'


class _Client:
    """One connection: its unread bytes, unsent bytes, and the stream it carries."""

    def __init__(self, sock: socket.socket):
        self.sock, self.data, self.out = sock, b"", b""
        self.busy = self.chat = False
        self.row = self.tokens = self.sent = self.received_ns = 0


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def _event(chat: bool, count: int, first: bool, last: bool) -> bytes:
    text, reason = " hello" * count, "length" if last else None
    if chat:
        delta = {"role": "assistant", "content": text} if first else {"content": text}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        data = {"id": "chatcmpl-gt", "object": "chat.completion.chunk", "created": 1700000000, "choices": [choice]}
    else:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        data = {"id": "cmpl-gt", "object": "text_completion", "created": 1700000000, "choices": [choice]}
    return _chunk(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")


class Server:
    """The server; :meth:`serve` runs until stdin closes."""

    def __init__(self, ttft_ns: int, itl_ns: int, per_event: int, port: int):
        self._ttft_ns, self._itl_ns, self._per_event = ttft_ns, itl_ns, per_event
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._clients: dict[int, _Client] = {}
        self._due: list[tuple[int, int, _Client]] = []
        self._rows: list[list[int]] = []
        self._written: list[int] = []
        self._offset_ns = stamps.offset_ns()[1]
        self._blocked = 0
        self._events: dict[tuple[bool, int, bool, bool], bytes] = {}

    def serve(self, watch_fd: int | None = 0) -> None:
        """Answer until ``watch_fd`` closes."""
        if watch_fd is not None:
            self._epoll.register(watch_fd, select.EPOLLIN | select.EPOLLHUP)
        anchor_at, listener = 0, self._listener.fileno()
        while True:
            now = time.monotonic_ns()
            if now >= anchor_at:
                self._offset_ns, anchor_at = stamps.offset_ns()[1], now + 100_000_000
            for _ in range(16):
                if not self._due or self._due[0][0] > time.monotonic_ns():
                    break
                self._emit()
            gap = self._due[0][0] - time.monotonic_ns() if self._due else 100_000_000
            for fd, mask in self._epoll.poll((gap - SPIN_NS) // 1_000_000 / 1e3 if gap > SPIN_NS else 0, 64):
                if fd == listener:
                    self._accept()
                elif fd == watch_fd:
                    return
                elif client := self._clients.get(fd):
                    self._serve_event(client, mask)

    def _serve_event(self, client: _Client, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT and client.out:
                client.out = client.out[client.sock.send(client.out) :]
                if not client.out:
                    self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
            if mask & ~select.EPOLLOUT:
                self._take(client)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamps.enable(sock)
            self._clients[sock.fileno()] = _Client(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.sock.fileno(), None)
        client.busy = False
        client.sock.close()

    def _take(self, client: _Client) -> None:
        data, ancillary, _, _ = client.sock.recvmsg(65536, stamps.ANCILLARY_BYTES)
        now = received = time.monotonic_ns()
        if not data:
            raise ConnectionResetError
        if ancillary:
            seconds, nanoseconds = stamps.unpack_timespec(ancillary[0][2])
            kernel = seconds * 1_000_000_000 + nanoseconds - self._offset_ns
            received = kernel if now - 10_000_000_000 < kernel <= now else now
        client.data += data
        head, stop, rest = client.data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        need = int(length[1]) if length else 0
        if not stop or len(rest) < need or client.busy:
            return
        client.data = rest[need:]
        self._answer(client, head, rest[:need], received, now)

    def _answer(self, client: _Client, head: bytes, body: bytes, received: int, now: int) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith((b"/v1/completions", b"/v1/chat/completions")):
            self._begin(client, head, json.loads(body), received, now)
        elif path.startswith(b"/qmeter/log"):
            self._reply(client, b"200 OK", self._log())
        elif path.startswith(b"/qmeter/reset"):
            self._rows, self._written, self._blocked = [], [], 0
            self._reply(client, b"200 OK", b"")
        elif path.startswith((b"/v1/models", b"/health", b"/metrics")):
            self._reply(client, b"200 OK", _MODELS if path.startswith(b"/v1") else b"")
        else:
            self._reply(client, b"404 Not Found", b"{}")

    def _begin(self, client: _Client, head: bytes, body: dict[str, object], received: int, now: int) -> None:
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 64
        if not isinstance(tokens, int) or tokens < 1 or not body.get("stream"):
            self._reply(client, b"400 Bad Request", b'{"error":{"message":"streams of max_tokens >= 1 only"}}')
            return
        found = _ID.search(head)
        events = -(-tokens // self._per_event)
        self._rows.append([int(found[1]) if found else -1, received, now, len(self._written), events, 0])
        self._written.extend([-1] * events)
        client.row, client.tokens, client.sent, client.busy = len(self._rows) - 1, tokens, 0, True
        client.chat = b"/chat/" in head.split(b"\r\n", 1)[0]
        heapq.heappush(self._due, (received + self._ttft_ns, id(client), client))

    def _emit(self) -> None:
        due, _, client = heapq.heappop(self._due)
        if not client.busy:
            return
        count = min(self._per_event, client.tokens - client.sent)
        first, last = client.sent == 0, client.sent + count >= client.tokens
        key = (client.chat, count, first, last)
        data = self._events.get(key) or self._events.setdefault(key, _event(*key))
        row = self._rows[client.row]
        client.sent += count
        try:
            self._written[row[3] + row[5]] = time.monotonic_ns()
            row[5] += 1
            self._put(client, _HEAD + data if first else data)
            if last:
                self._put(client, self._ending(client))
        except OSError:
            self._drop(client)
            return
        if last:
            client.busy = False
        else:
            heapq.heappush(self._due, (due + self._per_event * self._itl_ns, id(client), client))

    def _ending(self, client: _Client) -> bytes:
        usage = {"prompt_tokens": 8, "completion_tokens": client.tokens, "total_tokens": client.tokens + 8}
        data = json.dumps({"choices": [], "usage": usage}).encode()
        return _chunk(b"data: " + data + b"\n\n") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def _put(self, client: _Client, data: bytes) -> None:
        sent = 0
        if not client.out:
            try:
                sent = client.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            self._blocked += 1
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        client.out += data[sent:]

    def _reply(self, client: _Client, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._put(client, head + body)

    def _log(self) -> bytes:
        head = struct.pack("<6q", 0x3154474D51, len(self._rows), len(self._written), self._ttft_ns,
                           self._itl_ns * self._per_event, self._blocked)  # fmt: skip
        rows = b"".join(struct.pack("<4q2i", *row) for row in self._rows)
        return head + rows + struct.pack(f"<{len(self._written)}q", *self._written)


def main() -> None:
    """Serve as told on the command line."""
    ttft_ns, itl_ns, per_event, port = (int(a) for a in sys.argv[1:5])
    server = Server(ttft_ns, itl_ns, per_event, port)
    print(f"port {server.port}", flush=True)
    gc.freeze()
    gc.disable()
    server.serve()


if __name__ == "__main__":
    main()
