"""Driving whole loads: merged processes, TLS, proxies, progress, and children that end with their parent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from qmeter.errors import LoadError
from qmeter.load import LoadResult, Progress, Target, drive
from qmeter.load.arrivals import dispersion, ks_p_value
from qmeter.load.run import Worker
from qmeter.record import RequestStatus
from qmeter.spec.study import ClientSpec
from qmeter.testing.accuracy import errors
from qmeter.testing.ground_truth import compiled, ground_truth
from qmeter.testing.misbehaving import misbehaving
from qmeter.workload.schedule import Schedule, ScheduledRequest


def schedule(law: str, rate_hz: float, n: int, tokens: int = 4, seed: int = 0) -> Schedule:
    rng = np.random.default_rng(seed)
    gaps = {
        "constant": lambda: np.full(n, 1 / rate_hz),
        "poisson": lambda: rng.exponential(1 / rate_hz, n),
        "gamma": lambda: rng.gamma(0.5, 2 / rate_hz, n),
    }[law]()
    send_s = np.cumsum(gaps)
    values = {"rate_hz": rate_hz} | ({"burstiness": 0.5} if law == "gamma" else {})
    request = ScheduledRequest(f"ok {law}", 2, tokens)
    return Schedule(send_s, (request,) * n, (law, values), 0.0, float(send_s[-1]) + 1e-3, 10.0)


def run(
    what: Schedule, base_url: str, processes: int = 1, origin_s: float | None = None, **target: object
) -> LoadResult:
    origin_s = time.monotonic() if origin_s is None else origin_s
    return drive(what, Target(base_url, "m", **target), origin_monotonic_s=origin_s,  # type: ignore[arg-type]
                 client=ClientSpec(processes=processes))  # fmt: skip


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("law", ["constant", "poisson", "gamma"])
def test_merged_arrivals_are_what_was_asked(law: str, processes: int) -> None:
    # GIVEN one schedule
    asked = schedule(law, 100.0, 300)
    with misbehaving() as server:
        # WHEN one process or four send it
        result = run(asked, server.base_url, processes)
    # THEN every request is sent once, in its own row, at its own time, and the merged sends follow the law
    requests = result.requests
    assert set(requests.status) == {RequestStatus.OK}
    assert np.allclose(requests.intended_s - result.start_s, asked.send_s, atol=1e-8)
    assert result.proof.processes == processes
    heads = sorted(int(h.split(b"qmeter-")[1].split(b"\r\n")[0]) for h in server.heads)
    assert heads == list(range(300))
    merged = np.sort(requests.sent_s) - result.start_s
    spread = dispersion(merged, 100.0)
    assert spread is not None
    if law == "constant":
        assert spread < 0.2
    else:
        assert (ks_p_value(merged, asked.law) or 0) > 1e-4
        assert spread > 0.3


def test_a_request_of_one_stamp_matches_the_ground_truth() -> None:
    # GIVEN the ground truth, by whichever implementation this host has
    asked = schedule("poisson", 50.0, 50, tokens=16)
    with ground_truth(0.02, 0.005) as truth:
        origin_s = time.monotonic()
        result = run(asked, truth.base_url, origin_s=origin_s)
        log = truth.log()
    # THEN every token of every request is there and carries its number, and time flows from server to client
    wrong = errors(result, log, origin_monotonic_s=origin_s)
    assert wrong.missing == 0
    assert len(wrong.stamp_s) == 50 * 16
    assert (wrong.stamp_s > -50e-6).all()
    assert np.median(wrong.stamp_s) < 5e-3
    assert set(result.requests.output_tokens) == {16}
    assert result.proof.checks["kernel_stamp_share"].value is not None


def test_closed_loop_keeps_its_concurrency() -> None:
    n = 400
    request = ScheduledRequest("ok", 1, 4)
    closed = Schedule(np.full(n, np.nan), (request,) * n, ("closed", {"concurrency": 5}), 0.0, 1.5, 5.0, concurrency=5)
    with misbehaving() as server:
        for processes in (1, 2):
            result = run(closed, server.base_url, processes)
            requests = result.requests
            went = np.isfinite(requests.sent_s)
            edges = np.concatenate([[(t, 1) for t in requests.sent_s[went]], [(t, -1) for t in requests.end_s[went]]])
            in_flight = np.cumsum(edges[np.lexsort((edges[:, 1], edges[:, 0]))][:, 1])
            assert in_flight.max() == 5
            assert np.median(in_flight) >= 4
            assert set(requests.status) == {RequestStatus.OK, RequestStatus.UNSENT}
            assert (requests.sent_s[went] - result.start_s < 1.5 + 0.1).all()


def test_think_time_is_kept() -> None:
    request = ScheduledRequest("ok", 1, 1)
    closed = Schedule(np.full(50, np.nan), (request,) * 50, ("closed", {}), 0.0, 1.0, 5.0, concurrency=1, think_s=0.1)
    with misbehaving() as server:
        result = run(closed, server.base_url)
    went = np.isfinite(result.requests.sent_s)
    gaps = result.requests.sent_s[went][1:] - result.requests.end_s[went][:-1]
    assert (gaps >= 0.1 - 1e-4).all()


def test_an_exhausted_closed_loop_is_invalid() -> None:
    request = ScheduledRequest("ok", 1, 1)
    closed = Schedule(np.full(3, np.nan), (request,) * 3, ("closed", {}), 0.0, 2.0, 5.0, concurrency=2)
    with misbehaving() as server:
        result = run(closed, server.base_url)
    assert [f.kind for f in result.proof.failures] == ["schedule_exhausted"]


def test_requests_in_flight_at_the_drains_end_are_cancelled() -> None:
    one = ScheduledRequest("silence", 1, 1)
    short = Schedule(
        np.asarray([0.0, 0.1]), (one, ScheduledRequest("ok", 1, 2)), ("constant", {"rate_hz": 10.0}), 0.0, 0.2, 0.3
    )
    with misbehaving() as server:
        begun = time.monotonic()
        result = run(short, server.base_url)
    assert list(result.requests.status) == [RequestStatus.CANCELLED, RequestStatus.OK]
    assert time.monotonic() - begun < 10


def test_progress_is_told() -> None:
    told: list[Progress] = []
    with misbehaving() as server:
        drive(schedule("constant", 50.0, 40), Target(server.base_url, "m"), origin_monotonic_s=0.0,
              client=ClientSpec(processes=1), on_progress=told.append)  # fmt: skip
    assert told[-1].total == 40
    assert [p.sent for p in told] == sorted(p.sent for p in told)
    assert 0 < told[-1].ended <= 40


def test_headers_and_text_reach_where_they_should() -> None:
    with misbehaving() as server:
        result = run(
            schedule("constant", 100.0, 3), server.base_url, headers={"Authorization": "Bearer s3cret"}, keep_text=True
        )
    assert all(b"Authorization: Bearer s3cret" in h for h in server.heads)
    assert set(result.requests.text) == {" a a a a"}


@pytest.mark.parametrize(
    "target",
    [
        Target("ftp://x", "m"),
        Target("http://127.0.0.1:1", "m", headers={"A": "b\r\nEvil: 1"}),
        Target("http://127.0.0.1:1", "m", proxy="socks5://u:pw@h:1"),
        Target("http://no-such-host.invalid", "m"),
    ],
)
def test_wrong_targets_are_refused_with_a_hint_or_reason(target: Target) -> None:
    with pytest.raises(LoadError) as caught:
        drive(schedule("constant", 100.0, 3), target, origin_monotonic_s=0.0, client=ClientSpec())
    assert "pw" not in str(caught.value)


def test_token_ids_to_a_chat_endpoint_are_refused() -> None:
    ids = Schedule(np.asarray([0.0]), (ScheduledRequest((1, 2), 2, 1),), ("constant", {"rate_hz": 1.0}), 0.0, 1.0, 1.0)
    with pytest.raises(LoadError, match="token ids"):
        run(ids, "http://127.0.0.1:1", path="/v1/chat/completions")


def test_a_prompt_larger_than_the_socket_buffer_goes_out_whole() -> None:
    words = ScheduledRequest("ok " + "x" * 6_000_000, 1, 2)
    big = Schedule(np.asarray([0.0, 0.01]), (words, words), ("constant", {"rate_hz": 100.0}), 0.0, 0.1, 20.0)
    with misbehaving() as server:
        # the test server reads through asyncio's 64 KiB windows: the client must wait for room
        result = run(big, server.base_url)
    assert set(result.requests.status) == {RequestStatus.OK}


# -- TLS and proxies -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    pem = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(folder / "key.pem"), "-out",
         str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return pem


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_tls_keeps_kernel_stamps_and_tokens(tls: ssl.SSLContext, certificate: Path) -> None:
    with misbehaving(tls) as server:
        result = run(schedule("constant", 50.0, 20), server.base_url, ca_file=str(certificate))
        unknown = run(schedule("constant", 50.0, 2), server.base_url)
    assert set(result.requests.status) == {RequestStatus.OK}
    assert result.proof.checks["kernel_stamp_share"].value == 1.0
    assert np.bincount(result.tokens.request, weights=result.tokens.n).tolist() == [4.0] * 20
    # AND a certificate nobody vouched for is refused, and named
    assert set(unknown.requests.status) == {RequestStatus.CONNECT}
    assert "CERTIFICATE_VERIFY_FAILED" in unknown.requests.error[0]


class Proxy:
    """An HTTP proxy for one test: absolute-form requests and CONNECT tunnels; notes the heads it saw."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:p%40ss@127.0.0.1:{self.listener.getsockname()[1]}"
        self.heads: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65536)
            if not piece:
                return
            head += piece
        self.heads.append(head.split(b"\r\n\r\n")[0])
        verb, where, _ = head.split(b"\r\n", 1)[0].split(b" ")
        if verb == b"CONNECT":
            host, port = where.split(b":")
            server = socket.create_connection((host, int(port)))
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            host, port = where.split(b"/")[2].split(b":")
            server = socket.create_connection((host, int(port)))
            server.sendall(head)
        threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
        self._pump(server, client)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.listener.close()


def test_plain_http_goes_through_a_proxy_in_absolute_form(proxy: Proxy) -> None:
    with misbehaving() as server:
        result = run(schedule("constant", 50.0, 10), server.base_url, proxy=proxy.url)
    assert set(result.requests.status) == {RequestStatus.OK}
    assert proxy.heads[0].startswith(b"POST http://127.0.0.1:")
    assert b"Proxy-Authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]


def test_https_goes_through_a_tunnel(proxy: Proxy, tls: ssl.SSLContext, certificate: Path) -> None:
    with misbehaving(tls) as server:
        result = run(schedule("constant", 50.0, 10), server.base_url, proxy=proxy.url, ca_file=str(certificate))
    assert set(result.requests.status) == {RequestStatus.OK}
    assert all(h.startswith(b"CONNECT 127.0.0.1:") for h in proxy.heads)
    assert all(b"Proxy-Authorization" not in h for h in server.heads)


# -- life and death --------------------------------------------------------------------------------------------------

PARENT = """
import sys, time, numpy as np
from qmeter.load import Target, drive
from qmeter.spec.study import ClientSpec
from qmeter.workload.schedule import Schedule, ScheduledRequest
n = 1000
law = ("constant", {"rate_hz": 20.0})
what = Schedule(np.arange(n) / 20.0, (ScheduledRequest("ok", 1, 4),) * n, law, 0, 50.0, 10.0)
print("up", flush=True)
drive(what, Target(sys.argv[1], "m"), origin_monotonic_s=0.0, client=ClientSpec(processes=2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_client_processes_end_with_their_parent(how: signal.Signals) -> None:
    with misbehaving() as server:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, server.base_url], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        assert parent.stdout is not None
        parent.stdout.readline()
        until = time.monotonic() + 20
        while not server.seen["ok"] and time.monotonic() < until:
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children()
        assert len(children) == 2
        os.kill(parent.pid, how)
        parent.wait(10)
        _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def a_worker() -> psutil.Process | None:
    """A client process of ours that runs its program already."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "qmeter.load.worker" in child.cmdline():
                return child
    return None


def end_worker(_: Progress, how: signal.Signals = signal.SIGKILL) -> None:
    child = a_worker()
    if child is not None:
        child.send_signal(how)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_process_that_dies_is_named(how: signal.Signals) -> None:
    with misbehaving() as server, pytest.raises(LoadError, match=how.name):
        drive(schedule("constant", 20.0, 100), Target(server.base_url, "m"), origin_monotonic_s=0.0,
              client=ClientSpec(processes=1), on_progress=lambda p: end_worker(p, how))  # fmt: skip


def test_a_client_process_that_an_interrupt_ends_is_the_runs_interrupt() -> None:
    # GIVEN a client process that still imports, where Ctrl-C is not yet left to its parent
    def interrupt() -> None:
        until = time.monotonic() + 10
        while (child := a_worker()) is None and time.monotonic() < until:
            time.sleep(0.001)
        if child is not None:
            child.send_signal(signal.SIGINT)

    began = threading.Thread(target=interrupt)
    with misbehaving() as server:
        began.start()
        # WHEN the signal reaches it alone THEN the load ends as if it had reached this process
        with pytest.raises(KeyboardInterrupt):
            drive(schedule("constant", 20.0, 100), Target(server.base_url, "m"), origin_monotonic_s=0.0,
                  client=ClientSpec(processes=2))  # fmt: skip
        began.join()
    assert a_worker() is None


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)", KeyboardInterrupt),
        ("import sys; print('KeyboardInterrupt', file=sys.stderr); sys.exit(1)", KeyboardInterrupt),
        ("raise ValueError('KeyboardInterrupt is not what this is')", LoadError),
        ("import os; os.kill(os.getpid(), 15)", LoadError),
    ],
)
def test_only_an_interrupt_ends_a_run(tmp_path: Path, program: str, error: type[BaseException]) -> None:
    with open(tmp_path / "stderr", "w+b") as stderr:
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=stderr, bufsize=0)  # fmt: skip
        worker = Worker(process, -1, stderr)
        process.wait(10)
        with pytest.raises(error):
            worker.listen()
        worker.end()


def test_a_name_with_a_dead_first_address_still_connects() -> None:
    # localhost is often ::1 first, where nobody listens
    with misbehaving() as server:
        result = run(schedule("constant", 100.0, 20), server.base_url.replace("127.0.0.1", "localhost"))
    assert set(result.requests.status) == {RequestStatus.OK}


def test_no_file_descriptor_is_left_behind() -> None:
    with misbehaving() as server:
        run(schedule("constant", 100.0, 5), server.base_url)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            run(schedule("constant", 100.0, 5), server.base_url)
        assert len(os.listdir("/proc/self/fd")) <= before + 5  # the test server's own connections may linger


def test_the_c_ground_truth_compiles_here() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    assert compiled() is not None


def stop_a_worker(found: list[int], how_many: int) -> None:
    """SIGSTOP client processes of ours once they are under way."""
    me, deadline = psutil.Process(), time.monotonic() + 20
    while time.monotonic() < deadline and len(found) < how_many:
        for child in me.children():
            with_worker = "qmeter.load.worker" in " ".join(child.cmdline())
            if with_worker and child.pid not in found and len(found) < how_many:
                time.sleep(0.8)
                child.send_signal(signal.SIGSTOP)
                found.append(child.pid)
        time.sleep(0.02)


@pytest.mark.parametrize(("processes", "stopped"), [(2, 1), (1, 1)])
def test_a_client_process_that_hangs_is_ended_and_makes_the_result_invalid(
    processes: int, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a load of 2 s whose drain is 1 s, and reports due within 1 s
    monkeypatch.setattr("qmeter.load.deadline.REPORT_S", 1.0)
    asked = schedule("constant", 20.0, 40)
    asked = Schedule(asked.send_s, asked.requests, asked.law, 0.0, asked.window_s, 1.0)
    found: list[int] = []
    stopper = threading.Thread(target=stop_a_worker, args=(found, stopped))
    with misbehaving() as server:
        stopper.start()
        began_s = time.monotonic()
        # WHEN a client process is stopped under way
        result = run(asked, server.base_url, processes)
        took_s = time.monotonic() - began_s
        stopper.join()
    # THEN the load ends, the process is gone, the result is invalid and says why, and other processes' requests count
    assert took_s < 15
    assert not any(psutil.pid_exists(pid) for pid in found)
    assert result.proof.failures[0].kind == "client_hung"
    assert f"{stopped} of {processes} client processes" in result.proof.failures[0].message
    statuses = [str(s) for s in result.requests.status]
    assert statuses.count(RequestStatus.OK.value) == (20 if processes == 2 else 0)
    assert statuses.count(RequestStatus.UNSENT.value) == (20 if processes == 2 else 40)
    assert np.isnan(result.requests.sent_s[[s == "unsent" for s in statuses]]).all()


@pytest.mark.parametrize(("rate_hz", "n", "tokens"), [(100.0, 200, 20), (30.0, 75, 200)], ids=["short", "long"])
def test_stamps_that_late_reads_made_late_are_doubted_and_break_the_proof(rate_hz: float, n: int, tokens: int) -> None:
    # GIVEN tokens 10 ms apart and a client that stands still for 150 ms, whether streams end meanwhile or outlive it
    asked = schedule("constant", rate_hz, n, tokens=tokens)
    stopped: list[int] = []

    def stand_still(progress: Progress) -> None:
        if progress.sent < n / 3 or stopped:
            return
        for child in psutil.Process().children():
            if "qmeter.load.worker" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGSTOP)
                time.sleep(0.15)
                child.send_signal(signal.SIGCONT)
                stopped.append(child.pid)

    with ground_truth(0.05, 0.01) as truth:
        origin_s = time.monotonic()
        result = drive(asked, Target(truth.base_url, "m"), origin_monotonic_s=origin_s,
                       client=ClientSpec(processes=1), on_progress=stand_still)  # fmt: skip
        wrong = errors(result, truth.log(), origin_monotonic_s=origin_s)
    # THEN the doubt, known from inside, bounds the error that this made, and not from far away
    for name, true in (("ttft", wrong.ttft_s), ("itl", np.abs(wrong.itl_s))):
        most_s, told_s = float(np.percentile(true, 99)), result.proof.checks[f"{name}_stamp_doubt_p99"].value
        assert told_s is not None and most_s - 1e-3 < told_s < 0.3, (name, most_s, told_s)
    assert np.percentile(wrong.ttft_s, 99) > 0.01, "the pause was seen"
    assert "client_behind" in [f.kind for f in result.proof.failures]


def test_what_ends_a_stream_makes_no_doubt_however_late_it_is_read() -> None:
    # GIVEN one token a request, its end in the same read
    asked = schedule("constant", 100.0, 100, tokens=1)
    with ground_truth(0.02, 0.01) as truth:
        result = run(asked, truth.base_url)
    assert result.proof.checks["ttft_stamp_doubt_p99"].value == 0.0
