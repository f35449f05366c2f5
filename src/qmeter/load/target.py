"""Where the load goes and what comes back: the load client's two edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qmeter.record import ClientProof, Requests, Tokens


@dataclass(frozen=True)
class Target:
    """An OpenAI-compatible server and the sampling parameters that every request carries.

    Attributes:
        base_url: scheme, host and port, as in ``http://127.0.0.1:8000``; ``https`` uses TLS.
        model: the served model's name.
        headers: HTTP headers for every request (an API key lives only here).
        path: the endpoint; ``/v1/completions`` takes text or token ids.
        stall_s: longest silence inside a stream before the request is STALL.
        timeout_s: longest a request may take in all before it is TIMEOUT.
        keep_text: whether generated text is kept (graded tasks need it).
        proxy: ``http://host:port`` of an HTTP proxy, or ``None``.
        ca_file: PEM file to trust besides the system's.
        keep_alive: whether connections are used again. Off for servers that tie a thread to each connection.
        open_ahead: sockets held ready beyond those in use; ``None``: from the rate (closed loop: the concurrency).
            0 opens each when its request is due, for servers that tie a thread to each connection.
    """

    base_url: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    path: str = "/v1/completions"
    temperature: float = 0.0
    ignore_eos: bool = True
    stall_s: float = 60.0
    timeout_s: float = 600.0
    keep_text: bool = False
    proxy: str | None = None
    ca_file: str | None = None
    keep_alive: bool = True
    open_ahead: int | None = None


@dataclass(frozen=True)
class LoadResult:
    """What one load run gives: every request, every token event, and the client's proof of its own accuracy.

    Attributes:
        start_s: when the load's schedule began (its send time 0), on the clock that ``drive`` was given. The runner
            then moves the cell's clock there, so that in a record t = 0 is the start of the load.
    """

    requests: Requests
    tokens: Tokens
    proof: ClientProof
    start_s: float
