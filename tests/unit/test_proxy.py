"""The proxy: strangers stay out, what is altered on the way does not arrive, and nothing hangs."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import ssl
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.comm.secure import proxy as proxy_module
from swarmstep.comm.secure import tls
from swarmstep.comm.secure.listener import PENDING
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tls import contexts, derived_key
from swarmstep.comm.secure.tunnel import Tunnel, open_tunnel
from swarmstep.errors import CommError, UsageError

SECRET = b"correct horse battery staple"
OTHER = b"wrong horse, battery and staple"
LIMIT = 20.0  # seconds; a hang, not a measurement
ADDRESS = "127.0.0.1"
KNOWN, STRANGE = contexts(SECRET), contexts(OTHER)
WELCOME = b"1"


def read(connection: socket.socket, count: int) -> bytes:
    """Return `count` bytes, fewer at the end of the connection, however that comes."""
    data = b""
    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data


def connect(port: int) -> socket.socket:
    return socket.create_connection((ADDRESS, port), LIMIT)


def trusting(context: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """Return what takes any door for the right one; it shows the certificate of `context`, which it changes."""
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def worker(port: int, context: ssl.SSLContext = KNOWN.worker) -> ssl.SSLSocket:
    """Return the connection of a worker, made with Python's blocking TLS."""
    return context.wrap_socket(connect(port), server_hostname="swarmstep")


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


def test_the_certificate_follows_from_the_secret(proxy: Proxy) -> None:
    """HKDF by hand (RFC 5869); and the bytes of the certificate, which all machines must have alike."""
    prk = hmac.digest(bytes(32), SECRET, "sha256")
    assert derived_key(SECRET, b"purpose") == hmac.digest(prk, b"purpose\x01", "sha256")
    with worker(proxy.port) as connection:
        shown = connection.getpeercert(binary_form=True)
    assert shown
    assert hashlib.sha256(shown).hexdigest() == "0a002545f4e5b89465d8b750eefb50daab9eb04d0663e368d57534381fcbd35a"


def test_bytes_pass_both_ways_encrypted(proxy: Proxy, heard: Queue[bytes]) -> None:
    sent = [b"a", b"bc" * 30_000, b"d"]
    wire = bytearray()
    with between(proxy.port, lambda _, data: wire.extend(data)) as middle:
        with worker(middle) as connection:
            assert connection.version() == "TLSv1.3"
            assert read(connection, 1) == WELCOME
            for data in sent:
                connection.sendall(data)
                assert read(connection, len(data)) == data
        assert heard.get(timeout=LIMIT) == b"".join(sent)
    assert b"bcbc" not in wire
    assert len(wire) > 60_000


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
            with worker(proxy.port) as connection:
                assert read(connection, 1) == WELCOME
                connection.sendall(bytes(8_000_000))
            assert heard.get(timeout=LIMIT) == 8_000_000


STRANGERS = {
    "no certificate": trusting,
    "an old secret": lambda: trusting(contexts(OTHER).worker),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_learns_nothing_and_reaches_nothing(
    proxy: Proxy, heard: Queue[bytes], said: Queue[str], who: str
) -> None:
    with worker(proxy.port, STRANGERS[who]()) as stranger:  # for itself the handshake is done
        with contextlib.suppress(OSError):
            stranger.sendall(b"let me in")
        assert read(stranger, 1) == b""
    line = said.get(timeout=LIMIT)
    assert "refused 127.0.0.1, which does not know the secret" in line
    assert "\n" not in line
    assert heard.empty()
    with worker(proxy.port) as connection:  # and this is the first that comes to the store
        assert read(connection, 1) == WELCOME
    assert heard.get(timeout=LIMIT) == b""
    assert heard.empty()


def test_older_versions_of_tls_are_refused(proxy: Proxy, said: Queue[str]) -> None:
    old = contexts(SECRET).worker
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        worker(proxy.port, old)
    assert "which does not speak TLS 1.3 as this version does (UNSUPPORTED_PROTOCOL)" in said.get(timeout=LIMIT)


class Recorded:
    """A worker's bytes on the wire, from before its first one to its end."""

    def __init__(self, port: int, words: bytes) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        worker = KNOWN.worker.wrap_bio(incoming, outgoing, server_hostname="swarmstep")
        self.flights = list[bytes]()
        with connect(port) as connection:
            for act in (worker.do_handshake, lambda: worker.write(words), lambda: worker.read(len(words) + 1)):
                while True:
                    try:
                        act()
                        break
                    except ssl.SSLWantReadError:
                        self._send(connection, outgoing)
                        incoming.write(connection.recv(1 << 16))
            self._send(connection, outgoing)
            connection.shutdown(socket.SHUT_WR)
            read(connection, 1 << 16)

    def _send(self, connection: socket.socket, outgoing: ssl.MemoryBIO) -> None:
        if flight := outgoing.read():
            self.flights.append(flight)
            connection.sendall(flight)


def test_what_was_recorded_is_refused_when_it_is_sent_again(
    proxy: Proxy, heard: Queue[bytes], said: Queue[str]
) -> None:
    """And truncated after each of its parts, or with one left out."""
    recorded = Recorded(proxy.port, b"one").flights
    assert heard.get(timeout=LIMIT) == b"one"
    replays = [recorded[:count] for count in range(1, len(recorded) + 1)]
    replays += [recorded[1:], recorded[:1] + recorded[2:], 2 * recorded]
    for number, flights in enumerate(replays, 1):
        with connect(proxy.port) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(b"".join(flights))
                connection.shutdown(socket.SHUT_WR)
            read(connection, 1 << 16)
        wait_for(lambda number=number: proxy.refused == number)
    assert heard.empty()


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


Alter = Callable[[int, bytearray], None]


@contextlib.contextmanager
def between(port: int, back: Alter, forth: Alter = lambda first, data: None) -> Iterator[int]:
    """A man in the middle, who calls back(offset, bytes) with what the proxy sends, forth(...) with the rest."""

    def pass_on(source: socket.socket, target: socket.socket, alter: Alter) -> None:
        place = 0
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                alter(place, data)
                place += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def attend(connection: socket.socket) -> None:
        with connect(port) as onward:
            thread = threading.Thread(target=pass_on, args=(onward, connection, back))
            thread.start()
            pass_on(connection, onward, forth)
            thread.join(LIMIT)

    with listening(attend) as middle:
        yield middle


@dataclass
class Flip:
    """Counts what passes in a direction of a connection, and changes a bit of it."""

    place: int = -1
    bit: int = 0
    passed: int = 0

    def __call__(self, first: int, data: bytearray) -> None:
        if first <= self.place < first + len(data):
            data[self.place - first] ^= 1 << self.bit
        self.passed = first + len(data)


RECORD = 5 + 5 + 1 + 16  # bytes of 5 bytes on the wire: header, data, type, tag


def test_no_bit_can_be_changed_on_the_way() -> None:
    """Whichever bit is changed, of the handshake or of what follows, nothing that was not sent arrives."""
    heard: Queue[bytes] = Queue()

    def attend(connection: socket.socket) -> None:
        told = read(connection, 5)
        with contextlib.suppress(OSError):
            connection.sendall(b"hello")
            read(connection, 1)
        heard.put(told)

    flips = [Flip(), Flip()]  # what the worker sends, what the proxy sends
    forth, back = (lambda *args: flips[0](*args)), (lambda *args: flips[1](*args))

    def talk() -> tuple[bytes, bytes]:
        """Return what has arrived at the store, if anything came so far, and at the worker."""
        with contextlib.suppress(OSError), worker(middle) as connection:
            if (welcome := read(connection, 1)) != WELCOME:
                return b"", welcome
            connection.sendall(b"there")
            answer = read(connection, 5)
            passed[:] = [flip.passed for flip in flips]
            connection.close()
            return heard.get(timeout=LIMIT), answer
        return b"", b""

    passed = [0, 0]
    with (
        listening(attend) as store,
        contextlib.closing(Proxy(store, SECRET, report=lambda line: None)) as proxy,
        between(proxy.port, back, forth) as middle,
    ):
        assert talk() == (b"there", b"hello")
        whole = list(passed)

        @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), way=st.integers(0, 1))
        def changed(place: float, bit: int, way: int) -> None:
            flips[:] = Flip(), Flip()
            flips[way].place, flips[way].bit = int(place * whole[way]), bit
            arrived, answer = talk()
            assert arrived in (b"", b"there")
            assert answer in (b"", b"hello")
            if flips[way].place >= whole[way] - RECORD:
                assert (arrived, answer)[way] == b""

        changed()


@pytest.mark.parametrize("way", ["to the proxy", "to the worker"])
def test_an_altered_word_ends_the_connection_and_both_say_so(
    proxy: Proxy, heard: Queue[bytes], said: Queue[str], way: str
) -> None:
    def alter(_first: int, data: bytearray) -> None:
        if len(data) == RECORD:
            data[-1] ^= 1

    def leave(_first: int, data: bytearray) -> None:
        pass

    with (
        between(proxy.port, *((leave, alter) if way == "to the proxy" else (alter, leave))) as middle,
        contextlib.closing(Tunnel((ADDRESS, middle), SECRET, LIMIT)) as tunnel,
        connect(tunnel.port) as connection,
    ):
        connection.sendall(b"there")
        assert read(connection, 5) == b""
        assert heard.get(timeout=LIMIT) == (b"" if way == "to the proxy" else b"there")
        if way == "to the proxy":
            assert "which sent what is not authentic" in said.get(timeout=LIMIT)
        else:
            assert "sent what is not authentic" in str(tunnel.error)


def test_open_tunnel_names_what_is_wrong(proxy: Proxy) -> None:
    where = f"127.0.0.1:{proxy.port}"
    with pytest.raises(
        CommError, match=f"^the proxy at {where} does not know the secret of this .* SWARMSTEP_SECRET_FILE$"
    ):
        open_tunnel((ADDRESS, proxy.port), OTHER, LIMIT)
    proxy.close()
    with pytest.raises(CommError, match=f"^no proxy at {where} within 0.3 s .*refused.*; is the host running"):
        open_tunnel((ADDRESS, proxy.port), SECRET, 0.3)
    silent = pytest.raises(CommError, match=r"within 0\.3 s \(connected, but no answer\)")
    with socket.create_server((ADDRESS, 0)) as mute, silent:
        open_tunnel((ADDRESS, mute.getsockname()[1]), SECRET, 0.3)
    with (
        listening(lambda connection: None) as port,
        pytest.raises(CommError, match=f":{port} closed the connection"),
    ):
        open_tunnel((ADDRESS, port), SECRET, LIMIT)
    foreign = pytest.raises(CommError, match=r"does not speak TLS 1\.3 as this version of swarmstep does")
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 5)) as port, foreign:
        open_tunnel((ADDRESS, port), SECRET, LIMIT)
    assert not [thread for thread in threading.enumerate() if thread.name == "swarmstep-proxy"]


def door(context: ssl.SSLContext, heard: list[bytes]) -> Callable[[socket.socket], None]:
    """Return how a false proxy attends: it welcomes whoever comes."""

    def attend(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(WELCOME)
            heard.append(read(secured, 1))

    return attend


def test_a_false_proxy_is_not_trusted() -> None:
    heard: list[bytes] = []
    with (
        listening(door(trusting(contexts(OTHER).door), heard)) as port,
        pytest.raises(CommError, match="does not know the secret of this worker"),
    ):
        open_tunnel((ADDRESS, port), SECRET, LIMIT)
    assert heard == []


def test_what_a_worker_sends_cannot_be_reflected() -> None:
    """A man in the middle without the secret sends a worker its own bytes."""

    def attend(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    with listening(attend) as port, pytest.raises(CommError, match=r"does not speak TLS 1\.3"):
        open_tunnel((ADDRESS, port), SECRET, LIMIT)


def test_a_wrong_address_or_secret_for_a_proxy() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 192\.0\.2\.77:0: .*give an address of this machine"):
        Proxy(1, SECRET, ("192.0.2.77", 0))
    for short in (lambda: Proxy(1, b"short"), lambda: open_tunnel((ADDRESS, 1), b"short")):
        with pytest.raises(UsageError, match="at least 16 bytes, found 5"):
            short()


def test_those_who_say_nothing_do_not_keep_others_out(proxy: Proxy) -> None:
    """Nor those who say one byte after another."""
    idle = [connect(proxy.port) for _ in range(3 * PENDING)]
    for connection in idle[::2]:
        with contextlib.suppress(OSError):
            connection.sendall(b"\x16\x03")
    with contextlib.closing(open_tunnel((ADDRESS, proxy.port), SECRET, LIMIT)):
        pass
    for connection in idle[: 2 * PENDING]:  # the oldest were dropped for those who came later
        assert read(connection, 1) == b""
    idle[-1].settimeout(0.01)
    with pytest.raises(TimeoutError):  # the last may still speak
        idle[-1].recv(1)
    for connection in idle:
        connection.close()


def test_who_does_not_answer_in_time_is_dropped(
    proxy: Proxy, said: Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "TIMEOUT", 0.2)
    with connect(proxy.port) as silent:
        assert read(silent, 1) == b""
        assert "did not authenticate within 0.2 s" in said.get(timeout=LIMIT)


def test_noise_is_dropped(proxy: Proxy, heard: Queue[bytes]) -> None:
    """Bytes without form, and what looks like the beginning of a handshake."""
    count = 0

    @given(
        start=st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"]),
        noise=st.binary(max_size=200),
    )
    def dropped(start: bytes, noise: bytes) -> None:
        nonlocal count
        with connect(proxy.port) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(start + noise)
                connection.shutdown(socket.SHUT_WR)
            assert len(read(connection, 1000)) <= 7  # an alert
        count += 1
        wait_for(lambda: proxy.refused == count)

    dropped()
    assert heard.empty()


def test_few_lines_report_many_refusals(proxy: Proxy, said: Queue[str]) -> None:
    for _ in range(9):
        with worker(proxy.port, STRANGERS["an old secret"]()) as stranger:
            assert read(stranger, 1) == b""
    proxy.close()
    assert proxy.refused == 9
    assert [line.rsplit("no. ")[1] for line in list(said.queue)] == ["1)", "2)", "4)", "8)"]


def test_the_key_is_not_left_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there for a moment, encrypted, for its owner alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[tuple[int, str]] = []
    remove = os.unlink

    def look(path: str) -> None:
        seen.append((stat.S_IMODE(os.stat(path).st_mode), Path(path).read_text()))
        remove(path)

    monkeypatch.setattr(tls.os, "unlink", look)
    contexts(SECRET)
    assert [*tmp_path.iterdir()] == []
    assert [mode for mode, _ in seen] == [0o600, 0o600]
    assert all("ENCRYPTED PRIVATE KEY" in text for _, text in seen)


def test_without_the_library_there_is_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for name in [name for name in sys.modules if name.startswith("cryptography.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r'connections between machines need cryptography.*"swarmstep\[secure\]"'):
        contexts(SECRET)
