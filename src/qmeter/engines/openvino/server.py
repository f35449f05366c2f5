"""The server process: starts the engine process, serves HTTP on loopback, and ends with it."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from qmeter.engines.openvino.evidence import VERBOSE_ENV
from qmeter.engines.openvino.link import Link
from qmeter.engines.openvino.options import ServerOptions, parse, to_argv
from qmeter.errors import MissingExtra

CORE_FD = "QMETER_OPENVINO_CORE_FD"
"""Set in the engine process alone: the number of its end of the socket."""
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("qmeter.openvino")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of both processes; returns the exit status."""
    options = parse(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if CORE_FD in os.environ:
        return _core(options)
    try:
        import uvicorn
        import uvloop
    except ImportError as error:
        raise MissingExtra("openvino", "the embedded engine's server") from error
    log.info("serving %s on 127.0.0.1:%d", options.served_model, options.port)
    return uvloop.run(_serve(uvicorn, options))


def _core(options: ServerOptions) -> int:
    """The engine process. It dies with the server process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from qmeter.engines.openvino.core import serve_core

    with socket.socket(fileno=int(os.environ[CORE_FD])) as sock:
        return serve_core(options, sock)


async def _serve(uvicorn: Any, options: ServerOptions) -> int:
    from qmeter.engines.openvino.app import build

    link = Link(options.steps)
    ours, theirs = socket.socketpair()
    env = {**os.environ, **VERBOSE_ENV, CORE_FD: str(theirs.fileno())}
    core = subprocess.Popen(
        [sys.executable, "-m", "qmeter.engines.openvino", *to_argv(options)], env=env, pass_fds=(theirs.fileno(),)
    )
    theirs.close()
    try:
        await link.connect(ours)
        config = uvicorn.Config(
            build(link, options.served_model),
            host="127.0.0.1",
            port=options.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            timeout_keep_alive=600,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        watch = asyncio.create_task(_end_after_failure(link, server))
        await server.serve()
        watch.cancel()
    finally:
        core.terminate()
        try:
            core.wait(5)
        except subprocess.TimeoutExpired:
            core.kill()
    return 1 if link.failure else 0


async def _end_after_failure(link: Link, server: Any) -> None:
    """End the server once its engine is gone: soon where it had served, later where the reason must still be read."""
    await link.failed.wait()
    log.error("the engine is gone: %s", link.failure)
    await asyncio.sleep(1.0 if link.config is not None else 30.0)
    server.should_exit = True
