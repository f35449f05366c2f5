"""One short GET to a server under test: its status and JSON, or nothing where it does not answer."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from qmeter.engines.base import Launch

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer. ``data`` is the body's JSON, ``None`` where it is not JSON; ``server`` the Server header."""

    status: int
    data: Any
    server: str | None


def get_json(launch: Launch, path: str) -> Answer | None:
    """GET ``path`` with the launch's headers; ``None`` where nothing answers (yet)."""
    url = urlsplit(launch.base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "127.0.0.1", url.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", url.path.rstrip("/") + path, headers=dict(launch.headers))
        answer = connection.getresponse()
        body = answer.read()
    except ssl.SSLCertVerificationError:
        raise
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    return Answer(answer.status, data, answer.getheader("server"))


def first_model(answer: Answer | None, name: str) -> dict[str, Any] | None:
    """The entry of ``/v1/models`` called ``name`` (its id or one of its aliases); ``None`` where there is none."""
    for entry in model_entries(answer):
        if name == entry.get("id") or name in (entry.get("aliases") or ()):
            return entry
    return None


def model_entries(answer: Answer | None) -> list[dict[str, Any]]:
    """Entries of a ``/v1/models`` answer; ``[]`` where it is something else."""
    data = answer.data if answer is not None and answer.status == 200 else None
    entries = data.get("data") if isinstance(data, dict) else None
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
