"""The proxy: strangers stay out, what is altered on the way does not arrive, and nothing hangs."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from queue import Queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.comm.secure import proxy as proxy_module
from swarmstep.comm.secure.listener import PENDING
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tunnel import Tunnel, open_tunnel
from swarmstep.errors import CommError, UsageError

SECRET = b"correct horse battery staple"
OTHER = b"wrong horse, battery and staple"
LIMIT = 20.0  # seconds; a hang, not a measurement
ADDRESS = "127.0.0.1"
GREETING = b"swarmstep/proxy2"


def mac(key: bytes, label: str, data: bytes) -> bytes:
    """As in the description of the wire, with the other interface of hmac."""
    return hmac.new(key, b"swarmstep\x00" + label.encode() + b"\x00" + data, "sha256").digest()


def frame(key: bytes, number: int, data: bytes) -> bytes:
    size = struct.pack(">I", len(data))
    return size + mac(key, "frame", struct.pack(">Q", number) + size + data) + data


def read(connection: socket.socket, count: int) -> bytes:
    """Return `count` bytes, fewer at the end of the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data


def connect(port: int) -> socket.socket:
    return socket.create_connection((ADDRESS, port), LIMIT)


class Worker:
    """A worker written from the description, which can do everything wrong."""

    def __init__(self, port: int, secret: bytes = SECRET) -> None:
        self.socket = connect(port)
        own = os.urandom(32)
        self.socket.sendall(GREETING + own)
        greeting = read(self.socket, 48)
        assert greeting[:16] == GREETING
        self.nonces = own + greeting[16:]
        self.key, self.proxys_key = (
            mac(secret, "to the proxy", self.nonces),
            mac(secret, "to the worker", self.nonces),
        )
        self.socket.sendall(mac(secret, "worker", self.nonces))
        self.proof = read(self.socket, 32)

    def is_dropped(self) -> bool:
        return read(self.socket, 1) == b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()


@contextlib.contextmanager
def listening(attend: Callable[[socket.socket], None], window: int = 0) -> Iterator[int]:
    """Call `attend` with each connection, one after the other; yield the port."""
    with socket.create_server((ADDRESS, 0)) as listener:
        if window:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)

        def run() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    with listener.accept()[0] as connection:
                        connection.settimeout(LIMIT)
                        attend(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(LIMIT)
    assert not thread.is_alive()


@pytest.fixture
def heard() -> Queue[bytes]:
    """What a store heard on one connection, when that has ended."""
    return Queue()


@pytest.fixture
def echo(heard: Queue[bytes]) -> Iterator[int]:
    """The port of a store that answers what it is told."""

    def attend(connection: socket.socket) -> None:
        told = b""
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                told += data
                connection.sendall(data)
        heard.put(told)

    with listening(attend) as port:
        yield port


@pytest.fixture
def said() -> Queue[str]:
    return Queue()


@pytest.fixture
def proxy(echo: int, said: Queue[str]) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(echo, SECRET, report=said.put)) as proxy:
        yield proxy


def test_bytes_pass_both_ways_as_described(proxy: Proxy, heard: Queue[bytes]) -> None:
    sent = [b"a", b"bc" * 30_000, b"d"]
    with Worker(proxy.port) as worker:
        assert worker.proof == mac(SECRET, "proxy", worker.nonces)
        answers = 0
        for number, data in enumerate(sent):
            worker.socket.sendall(frame(worker.key, number, data))
            answer = b""
            while len(answer) < len(data):  # it may come in several frames
                size = read(worker.socket, 4)
                tag, part = read(worker.socket, 32), read(worker.socket, struct.unpack(">I", size)[0])
                assert size + tag + part == frame(worker.proxys_key, answers, part)
                answer, answers = answer + part, answers + 1
            assert answer == data
    assert heard.get(timeout=LIMIT) == b"".join(sent)


def test_the_last_words_arrive() -> None:
    """A worker says much and leaves at once; the store takes it in slowly."""
    heard: Queue[int] = Queue()

    def attend(connection: socket.socket) -> None:
        count = 0
        while data := connection.recv(5000):
            count += len(data)
        heard.put(count)

    with listening(attend, window=4096) as store, contextlib.closing(Proxy(store, SECRET)) as proxy:
        for _ in range(3):
            with Worker(proxy.port) as worker:
                for number in range(160):
                    worker.socket.sendall(frame(worker.key, number, bytes(50_000)))
            assert heard.get(timeout=LIMIT) == 8_000_000


def test_a_stranger_learns_nothing_and_reaches_nothing(
    proxy: Proxy, heard: Queue[bytes], said: Queue[str]
) -> None:
    with Worker(proxy.port, OTHER) as stranger:
        assert stranger.proof == bytes(32)
        assert stranger.is_dropped()
    line = said.get(timeout=LIMIT)
    assert "refused 127.0.0.1, which does not know the secret" in line
    assert "\n" not in line
    assert heard.empty()
    with Worker(proxy.port):  # and this is the first that comes to the store
        pass
    assert heard.get(timeout=LIMIT) == b""
    assert heard.empty()


def repeated_proof(nonces: bytes) -> bytes:
    return mac(SECRET, "proxy", nonces)


def other_order(nonces: bytes) -> bytes:
    return mac(SECRET, "worker", nonces[32:] + nonces[:32])


def other_key(nonces: bytes) -> bytes:
    return mac(SECRET, "to the proxy", nonces)


def no_label(nonces: bytes) -> bytes:
    return hmac.new(SECRET, nonces, "sha256").digest()


def before(_nonces: bytes) -> bytes:
    return mac(SECRET, "worker", bytes(64))


@pytest.mark.parametrize("proof", [repeated_proof, other_order, other_key, no_label, before])
def test_reflection_and_replay_are_refused(proxy: Proxy, proof: Callable[[bytes], bytes]) -> None:
    with connect(proxy.port) as connection:
        nonce = bytes(32)
        connection.sendall(GREETING + nonce)
        connection.sendall(proof(nonce + read(connection, 48)[16:]))
        assert read(connection, 33) == bytes(32)


def test_a_reflected_nonce_is_refused(proxy: Proxy) -> None:
    with connect(proxy.port) as connection:
        greeting = read(connection, 48)
        connection.sendall(greeting)
        connection.sendall(repeated_proof(2 * greeting[16:]))
        assert read(connection, 33) == bytes(32)


def altered(worker: Worker, how: str) -> bytes:
    """Return what is wrong after a first frame b"one" with number 0."""
    two = frame(worker.key, 1, b"two")
    return {
        "repeated": frame(worker.key, 0, b"one"),
        "left out": frame(worker.key, 2, b"three"),
        "reflected": frame(worker.proxys_key, 1, b"two"),
        "other bytes": two[:-1] + b"0",
        "shorter": struct.pack(">I", 2) + two[4:],
        "huge": struct.pack(">I", 2**32 - 1) + two[4:],
        "without mac": two[:4] + bytes(32) + two[36:],
        "of another connection": frame(mac(SECRET, "to the proxy", bytes(64)), 1, b"two"),
    }[how]


HOW = (
    "repeated",
    "left out",
    "reflected",
    "other bytes",
    "shorter",
    "huge",
    "without mac",
    "of another connection",
)


@pytest.mark.parametrize("how", HOW)
def test_what_is_not_the_next_frame_ends_the_connection(
    proxy: Proxy, heard: Queue[bytes], said: Queue[str], how: str
) -> None:
    with Worker(proxy.port) as worker:
        worker.socket.sendall(frame(worker.key, 0, b"one"))
        assert read(worker.socket, 4 + 32 + 3)[36:] == b"one"
        worker.socket.sendall(altered(worker, how))
        assert worker.is_dropped()
    assert heard.get(timeout=LIMIT) == b"one"
    assert "which sent a frame that is not authentic" in said.get(timeout=LIMIT)


@contextlib.contextmanager
def between(port: int, alter: Callable[[int, bytearray], None]) -> Iterator[int]:
    """A man in the middle, who calls alter(offset, bytes) with all that the proxy sends; yield its port."""

    def attend(connection: socket.socket) -> None:
        with connect(port) as onward:

            def back() -> None:
                place = 0
                with contextlib.suppress(OSError):
                    while data := bytearray(onward.recv(1 << 16)):
                        count = len(data)
                        alter(place, data)
                        place += count
                        connection.sendall(data)
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

            thread = threading.Thread(target=back)
            thread.start()
            with contextlib.suppress(OSError):
                while data := connection.recv(1 << 16):
                    onward.sendall(data)
            with contextlib.suppress(OSError):
                onward.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT)

    with listening(attend) as middle:
        yield middle


@given(place=st.integers(0, 80 + 36 + 4), bit=st.integers(0, 7))
def test_no_bit_of_what_the_proxy_sends_can_be_changed(place: int, bit: int) -> None:
    """80 bytes of greeting and proof, then a frame of 5 bytes: 121 in all."""

    def flip(first: int, data: bytearray) -> None:
        if first <= place < first + len(data):
            data[place - first] ^= 1 << bit

    def attend(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"hello")
            connection.recv(1)

    lines: list[str] = []
    with (
        listening(attend) as store,
        contextlib.closing(Proxy(store, SECRET, report=lines.append)) as proxy,
        between(proxy.port, flip) as middle,
    ):
        if place < 80:  # the handshake itself fails
            with pytest.raises(CommError, match=f"the proxy at 127.0.0.1:{middle}"):
                open_tunnel((ADDRESS, middle), SECRET, LIMIT)
            return
        tunnel = Tunnel((ADDRESS, middle), SECRET, LIMIT)
        with contextlib.closing(tunnel), connect(tunnel.port) as connection:
            assert read(connection, 5) == b""
        assert "sent a frame that is not authentic" in str(tunnel.error)


def test_open_tunnel_names_what_is_wrong(proxy: Proxy) -> None:
    where = f"127.0.0.1:{proxy.port}"
    with pytest.raises(CommError, match=f"^the proxy at {where} refused the secret .* SWARMSTEP_SECRET_FILE$"):
        open_tunnel((ADDRESS, proxy.port), OTHER, LIMIT)
    proxy.close()
    with pytest.raises(CommError, match=f"^no proxy at {where} within 0.3 s .*refused.*; is the host running"):
        open_tunnel((ADDRESS, proxy.port), SECRET, 0.3)
    silent = pytest.raises(CommError, match=r"within 0\.3 s \(connected, but no greeting\)")
    with socket.create_server((ADDRESS, 0)) as mute, silent:
        open_tunnel((ADDRESS, mute.getsockname()[1]), SECRET, 0.3)
    with (
        listening(lambda connection: None) as port,
        pytest.raises(CommError, match=f":{port} closed the connection"),
    ):
        open_tunnel((ADDRESS, port), SECRET, LIMIT)
    foreign = pytest.raises(CommError, match="does not speak the protocol of this version")
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 5)) as port, foreign:
        open_tunnel((ADDRESS, port), SECRET, LIMIT)
    assert not [thread for thread in threading.enumerate() if thread.name == "swarmstep-proxy"]


def test_a_false_proxy_is_not_trusted() -> None:
    """It says what it hears: reflection in the other direction."""

    def attend(connection: socket.socket) -> None:
        connection.sendall(read(connection, 48))
        connection.sendall(read(connection, 32))

    with listening(attend) as port, pytest.raises(CommError, match="does not know the secret itself"):
        open_tunnel((ADDRESS, port), SECRET, LIMIT)


def test_a_wrong_address_or_secret_for_a_proxy() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.77:0: .*give an address of this machine"):
        Proxy(1, SECRET, ("192.0.2.77", 0))
    for short in (lambda: Proxy(1, b"short"), lambda: open_tunnel((ADDRESS, 1), b"short")):
        with pytest.raises(UsageError, match="at least 16 bytes, found 5"):
            short()


def test_those_who_say_nothing_do_not_keep_others_out(proxy: Proxy) -> None:
    idle = [connect(proxy.port) for _ in range(3 * PENDING)]
    with contextlib.closing(open_tunnel((ADDRESS, proxy.port), SECRET, LIMIT)):
        pass
    for connection in idle[: 2 * PENDING]:  # the oldest were dropped for those who came later
        assert read(connection, 49)[48:] == b""
    idle[-1].settimeout(0.01)
    assert read(idle[-1], 48)[:16] == GREETING
    with pytest.raises(TimeoutError):  # the last may still speak
        idle[-1].recv(1)
    for connection in idle:
        connection.close()


def test_who_does_not_answer_in_time_is_dropped(
    proxy: Proxy, said: Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "TIMEOUT", 0.2)
    with connect(proxy.port) as silent:
        assert read(silent, 49)[:16] == GREETING
        assert "did not authenticate within 0.2 s" in said.get(timeout=LIMIT)


@given(noise=st.binary(min_size=48, max_size=200))
def test_noise_is_dropped(noise: bytes) -> None:
    said: Queue[str] = Queue()
    with contextlib.closing(Proxy(1, SECRET, report=said.put)) as proxy, connect(proxy.port) as connection:
        connection.sendall(noise)
        connection.shutdown(socket.SHUT_WR)
        assert len(read(connection, 1000)) <= 48 + 32
        assert "refused 127.0.0.1" in said.get(timeout=LIMIT)


def test_few_lines_report_many_refusals(proxy: Proxy, said: Queue[str]) -> None:
    for _ in range(9):
        with Worker(proxy.port, OTHER) as stranger:
            assert stranger.is_dropped()
    proxy.close()
    assert proxy.refused == 9
    assert [line.rsplit("no. ")[1] for line in list(said.queue)] == ["1)", "2)", "4)", "8)"]
