"""Attach to a server that somebody else runs: any OpenAI-compatible URL. Nothing is started, nothing can be set."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qmeter.engines.base import Artifact, Launch, MetricsMap
from qmeter.engines.probe import Answer, first_model, get_json, model_entries
from qmeter.errors import EngineUnavailable
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment, EngineRef

MODEL_OPTION = "served_model"
"""Engine option that names the model as the server does, where that is not the study's name for it."""
LENGTH_KEYS = ("max_model_len", "context_length", "max_context_length", "context_window")
"""Where servers put the longest sequence in ``/v1/models`` (vLLM and SGLang, LM Studio, gateways)."""


class EndpointEngine:
    """Any OpenAI-compatible server, local or remote, over http or https."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """The address and headers to use; no command.

        The API key is read from the variable that ``engine.api_key_env`` names and lives in the headers alone.

        Raises:
            EngineUnavailable: there is no usable URL, or the key's variable is not set.
        """
        ref = deployment.engine
        return Launch(
            argv=None,
            base_url=_base_url(ref.url),
            served_model=str(ref.options.get(MODEL_OPTION, deployment.model.name)),
            log_path=workdir / "server.log",
            headers=_headers(ref),
        )

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """What ``/v1/models`` tells; all else is unknown. ``None`` while nothing answers.

        Raises:
            EngineUnavailable: it refuses the key, its certificate is not trusted, or it does not serve the model.
        """
        try:
            answer = get_json(launch, "/v1/models")
        except ssl.SSLCertVerificationError as error:
            raise EngineUnavailable(
                f"the certificate of {launch.base_url} is not trusted: {error.verify_message}",
                stage="ready",
                hint="set SSL_CERT_FILE to the PEM file of its authority",
            ) from error
        if answer is None or answer.status in (429, 502, 503, 504):
            return None
        _refuse_key(answer, launch)
        names = [str(e.get("id")) for e in model_entries(answer)]
        entry = first_model(answer, launch.served_model)
        if names and entry is None:
            raise EngineUnavailable(
                f"{launch.base_url} does not serve {launch.served_model!r}; it serves {', '.join(names[:8])}",
                stage="ready",
                hint=f"set engines[].options.{MODEL_OPTION} to one of them",
            )
        return _effective(entry or {}, answer)

    def metrics_map(self) -> MetricsMap:
        """None: an attached server's counters are its operator's."""
        return MetricsMap(
            path=None, sources=(), gap="attached to a server that qMeter did not start: only its API is used"
        )


def _base_url(url: str | None) -> str:
    if not url:
        raise EngineUnavailable(
            "the endpoint engine has no URL", stage="launch", hint="set engines[].url, as in http://127.0.0.1:8000"
        )
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise EngineUnavailable(
            "the endpoint's URL carries a user or password, which would end up in records",
            stage="launch",
            hint="put the key in an environment variable and name it in engines[].api_key_env",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise EngineUnavailable(
            f"{url!r} is no base URL", stage="launch", hint="scheme, host and port: http://127.0.0.1:8000"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _headers(ref: EngineRef) -> dict[str, str]:
    if ref.api_key_env is None:
        return {}
    key = os.environ.get(ref.api_key_env, "").strip()
    if not key:
        raise EngineUnavailable(
            f"the environment variable {ref.api_key_env} is not set",
            stage="launch",
            hint=f"export {ref.api_key_env}=… before the run; only its name is recorded",
        )
    return {"Authorization": f"Bearer {key}"}


def _refuse_key(answer: Answer, launch: Launch) -> None:
    if answer.status in (401, 403):
        how = "refuses the key" if launch.headers else "asks for a key"
        raise EngineUnavailable(
            f"{launch.base_url} {how} (HTTP {answer.status})",
            stage="ready",
            hint="name the environment variable that holds a valid key in engines[].api_key_env",
        )


def _effective(entry: dict[str, Any], answer: Answer) -> EffectiveConfig:
    """The few facts that an entry of ``/v1/models`` may hold."""
    length = next((entry[k] for k in LENGTH_KEYS if isinstance(entry.get(k), int)), None)
    properties = {k: str(v) for k, v in entry.items() if isinstance(v, str | int | float) and k != "created"}
    if answer.server:
        properties["http.server"] = answer.server
    return EffectiveConfig(
        max_model_tokens=length,
        properties=properties,
        sources={"max_model_tokens": "GET /v1/models"} if length is not None else {},
    )
