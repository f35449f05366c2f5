"""Health checks: a replica that does not answer gets no requests until it does."""

from __future__ import annotations

import asyncio

import aiohttp

from qmeter.router.board import Board, Replica, State
from qmeter.router.file import RouterLimits

PATHS = ("/health", "/v1/models")
"""Asked in turn: a server without the first one has the second."""


async def watch(board: Board, limits: RouterLimits) -> None:
    """Check every ready replica each ``health_interval``, for ever."""
    timeout = aiohttp.ClientTimeout(total=limits.health_timeout)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
        while True:
            ready = [r for r in board.replicas.values() if r.state is State.READY]
            answers = await asyncio.gather(*(_answers(session, r) for r in ready))
            for replica, ok in zip(ready, answers, strict=True):
                _note(board, replica, ok, limits.health_failures)
            await asyncio.sleep(limits.health_interval)


async def _answers(session: aiohttp.ClientSession, replica: Replica) -> bool:
    """Whether it serves: 2xx, and also 401, 403 and 429, which a server only gives while it works."""
    for path in PATHS:
        try:
            async with session.get(replica.base_url + path, headers=replica.headers, allow_redirects=False) as answer:
                if answer.status in (404, 405) and path != PATHS[-1]:
                    continue
                return answer.status < 300 or answer.status in (401, 403, 429)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
    return False


def _note(board: Board, replica: Replica, ok: bool, most: int) -> None:
    if ok:
        replica.failures = 0
        if not replica.healthy:
            replica.healthy = True
            board.wake()
        return
    replica.failures += 1
    if replica.failures >= most:
        replica.healthy = False
