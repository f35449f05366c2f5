"""``hf:org/name@revision`` (a folder) and ``hf:org/name@revision/file.gguf`` (one file), through huggingface_hub."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from qmeter.engines.base import Artifact
from qmeter.errors import MissingExtra, SourceError
from qmeter.sources.base import Request
from qmeter.sources.cache import check_sha256, locked, sha256_of
from qmeter.sources.local import file_artifact, folder_artifact

_REFERENCE = re.compile(r"^(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?$")
PATTERNS = ("*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt", "*.jinja", "*.xml", "*.bin.index.json",
            "openvino_*.bin")  # fmt: skip
"""Files of a model folder: weights, configuration, tokenizer. No Python code is fetched, and none is run."""


class HubSource:
    """Models from the Hugging Face hub."""

    def fetch(self, request: Request) -> Artifact:
        """The revision's files, from the cache where they were fetched before.

        Raises:
            MissingExtra: huggingface_hub is not installed.
            SourceError: malformed reference, no such model or revision, no access, no network.
        """
        match = _REFERENCE.match(request.reference)
        if match is None:
            raise SourceError(
                f"'hf:{request.reference}' is not hf:org/name@revision", stage="source",
                hint="such as hf:HuggingFaceTB/SmolLM2-135M-Instruct@main",
            )  # fmt: skip
        try:
            import huggingface_hub
        except ImportError as error:
            raise MissingExtra("hf", "a model from the Hugging Face hub") from error
        with locked(request.cache, f"hf:{request.reference}"):
            return _fetch(huggingface_hub, match["repo"], match["revision"] or "main", match["file"], request)


def _fetch(hub: Any, repo: str, revision: str, file: str | None, request: Request) -> Artifact:
    request.progress(f"fetching {repo}@{revision} from the hub")
    folder = request.cache / "hub"
    try:
        if file is not None:
            path = Path(hub.hf_hub_download(repo, file, revision=revision, cache_dir=folder)).resolve()
            digest = sha256_of(path)
            check_sha256(digest, request.sha256, f"hf:{request.reference}")
            return file_artifact(path, digest)
        path = Path(hub.snapshot_download(repo, revision=revision, cache_dir=folder, allow_patterns=list(PATTERNS)))
    except hub.errors.GatedRepoError as error:
        raise SourceError(
            f"{repo} is gated: this account has no access", stage="source",
            hint="accept its licence on the hub and log in with `hf auth login`",
        ) from error  # fmt: skip
    except hub.errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{repo} has no revision {revision!r}", stage="source", hint="name a branch or commit"
        ) from error
    except hub.errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model {repo!r}, or it is private", stage="source", hint="check the name, or log in"
        ) from error
    except hub.errors.EntryNotFoundError as error:
        raise SourceError(f"{repo}@{revision} has no file {file!r}", stage="source") from error
    except (hub.errors.LocalEntryNotFoundError, hub.errors.HfHubHTTPError, OSError) as error:
        raise SourceError(
            f"the hub was not reached for {repo}@{revision}, and it is not in the cache", stage="source",
            hint="check the network; once fetched it is found offline",
        ) from error  # fmt: skip
    commit = path.name
    digest = hashlib.sha256(f"{repo}@{commit}".encode()).hexdigest()
    return folder_artifact(path, digest, (f"{repo} at commit {commit} (the hash is of these two names)",))
