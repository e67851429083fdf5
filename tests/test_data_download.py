"""Downloads, from a real server on the loopback that misbehaves in every way."""

import gc
import gzip
import io
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from data_files import idx_files, remote

from tinygrad_nnfs import data
from tinygrad_nnfs.data import DataError, download, load, sources

CONTENTS = idx_files()
FIRST = "train-images-idx3-ubyte"
SIZE = len(CONTENTS[FIRST])


class Handler(BaseHTTPRequestHandler):
    """Answers /good/FILE.gz with the file, /WAY/FILE.gz with what the method WAY does."""

    def do_GET(self):
        _, way, file = self.path.partition("?")[0].split("/")
        self.server.requests.append((way, file))
        self.file = CONTENTS[file.removesuffix(".gz")]
        getattr(self, way)()

    def log_message(self, *args):
        pass

    def answer(self, *pieces, status=200, length=None, pause=0, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(piece)
                if self.server.closing.wait(pause):
                    break
        except OSError:
            pass  # the client has seen enough

    def good(self):
        body = gzip.compress(self.file, mtime=0)
        self.answer(body, length=len(body))

    def forbidden(self):
        self.answer(b"no", status=403)

    def not_there(self):
        self.answer(b"no", status=404)

    def broken(self):
        self.answer(b"no", status=500)

    def html(self):
        self.answer(b"<!DOCTYPE html><p>Please log in", **{"Content-Type": "text/html"})

    def not_compressed(self):
        self.answer(self.file)

    def empty(self):
        self.answer(length=0)

    def short(self):
        body = gzip.compress(self.file, mtime=0)
        self.answer(body[: len(body) // 2], length=len(body))

    def short_chunks(self):
        self.protocol_version = "HTTP/1.1"
        body = gzip.compress(self.file, mtime=0)[:-9]
        self.answer(b"%x\r\n" % (len(body) + 9), body, **{"Transfer-Encoding": "chunked"})
        self.close_connection = True

    def silent(self):
        self.server.closing.wait(10)

    def stall(self):
        body = gzip.compress(self.file, mtime=0)
        self.answer(body[: len(body) // 2], length=len(body))
        self.server.closing.wait(10)

    def drip(self):
        body = gzip.compress(self.file, mtime=0)
        self.answer(*(bytes([byte]) for byte in body), length=len(body), pause=0.03)

    def wrong(self):
        self.answer(gzip.compress(self.file[:-1] + bytes([self.file[-1] ^ 1]), mtime=0))

    def shorter(self):
        self.answer(gzip.compress(self.file[:-1], mtime=0))

    def longer(self):
        self.answer(gzip.compress(self.file + b"x", mtime=0))

    def damaged(self):
        self.answer(gzip.compress(self.file, mtime=0)[:10] + b"\xff" * 50)

    def circle(self):
        self.answer(status=302, Location=self.path)

    def longer_circle(self):
        self.answer(status=302, Location=f"{self.path}?{len(self.server.requests)}")

    def nowhere(self):
        self.answer(status=301, Location="http://[")

    def to_a_file(self):
        self.answer(status=301, Location="file:///etc/passwd")

    def endless(self):
        zipper = zlib.compressobj(wbits=31)
        self.answer_forever(zipper.compress(os.urandom(2**16)) for _ in itertools.count())

    def bomb(self):
        zipper = zlib.compressobj(wbits=31)
        self.answer_forever(zipper.compress(bytes(2**22)) for _ in itertools.count())

    def endless_nothing(self):
        start = b"\x1f\x8b\x08" + bytes(7)
        block = b"\0\0\0\xff\xff"  # of no bytes, and not the last
        self.answer_forever(itertools.chain([start], itertools.repeat(block * 1000)))

    def endless_name(self):
        start = b"\x1f\x8b\x08\x08" + bytes(6)  # a header with a file name, which goes on and on
        self.answer_forever(itertools.chain([start], itertools.repeat(b"a" * 2**16)))

    def answer_forever(self, pieces):
        self.answer()
        try:
            while not self.server.closing.is_set():
                self.server.sent += self.wfile.write(next(pieces))
        except OSError:
            pass

    def no_http(self):
        self.wfile.write(b"220 \x1b[31mFTP server ready\r\n")

    def hang_up(self):
        self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.requests = []
    server.sent = 0
    server.closing = threading.Event()
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mirrors(tmp_path, monkeypatch, server):
    """Sets the mirrors of MNIST, whose files are small here; there is nothing on the disk."""
    monkeypatch.delenv("NNFS_DATA", raising=False)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(sources, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")

    def set_mirrors(*ways):
        if {"silent", "stall", "drip"} & set(ways):
            monkeypatch.setattr(download, "STALL", 0.5)
            monkeypatch.setattr(download, "TOTAL", 0.8)
        addresses = tuple(way if ":" in way else f"{server.address}/{way}/" for way in ways)
        monkeypatch.setitem(sources.REMOTES, "mnist", remote(addresses))

    return set_mirrors


def check_cache(folder):
    """It has the four files and nothing half-written."""
    assert {path.name for path in folder.iterdir()} == {*CONTENTS, "lock"}
    for name, content in CONTENTS.items():
        assert (folder / name).read_bytes() == content


def test_each_file_is_downloaded_once(tmp_path, mirrors, server, capfd):
    mirrors("good")
    found = load("mnist")
    assert found.train_images.tobytes() == CONTENTS[FIRST][16:]
    check_cache(tmp_path / "cache" / "mnist")
    np.testing.assert_array_equal(load("mnist").test_labels, found.test_labels)
    np.testing.assert_array_equal(load("mnist", offline=True).test_labels, found.test_labels)
    assert server.requests == [("good", f"{file}.gz") for file in CONTENTS]
    assert capfd.readouterr() == ("", "")  # bars are for terminals


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


WAYS = [
    ("forbidden", "HTTP status 403"),
    ("not_there", "HTTP status 404"),
    ("broken", "HTTP status 500"),
    ("html", "sent no gzip file but 'text/html'"),
    ("not_compressed", "sent no gzip file but 'text/plain'"),
    ("empty", "the file ended early, after 0 bytes"),
    ("short", "the file ended early, after "),
    ("short_chunks", "sent no whole HTTP answer (IncompleteRead)"),
    ("silent", "sent nothing for 0.5 s"),
    ("stall", "sent nothing for 0.5 s"),
    ("drip", "took more than 0.8 s"),
    ("wrong", "wrong checksum (SHA-256 "),
    ("shorter", "wrong checksum (SHA-256 "),
    ("longer", f"sent more than the {SIZE:,} bytes expected"),
    ("damaged", "sent a damaged gzip file"),
    ("circle", "redirects lead nowhere, HTTP status 302"),
    ("longer_circle", "redirects lead nowhere, HTTP status 302"),
    pytest.param(
        *("nowhere", "Invalid IPv6 URL"),
        # urllib leaves the answer open
        marks=pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    ),
    ("to_a_file", "redirects lead nowhere, HTTP status 301"),
    ("endless", f"sent more than the {SIZE:,} bytes expected"),
    ("bomb", f"sent more than the {SIZE:,} bytes expected"),
    ("endless_nothing", f"sent more than the {SIZE:,} bytes expected"),
    ("endless_name", f"sent more than the {SIZE:,} bytes expected"),
    ("no_http", "sent no whole HTTP answer (BadStatusLine)"),
    ("hang_up", "sent no whole HTTP answer (RemoteDisconnected)"),
    ("http://127.0.0.1:{free_port}/", "Connection refused"),
    ("http://nnfs.invalid:80/", "Name or service not known"),
]


@pytest.mark.parametrize(("way", "message"), WAYS)
def test_after_a_bad_mirror_the_next_is_tried(tmp_path, mirrors, server, way, message):
    way = way.format(free_port=free_port())
    folder = tmp_path / "cache" / "mnist"
    mirrors(way)
    with pytest.raises(DataError) as error:
        load("mnist")
    text = str(error.value)
    assert text.startswith(f"data set 'mnist' could not be downloaded: {FIRST}.gz: 127.0.0.1:") or (
        "invalid" in way
    )
    assert message in text or "invalid" in way  # a resolver's words differ
    assert "NNFS_DATA=DIR" in text
    assert text.isprintable()
    assert [path.name for path in folder.iterdir()] == ["lock"]  # nothing half-written
    mirrors(way, "good")
    assert load("mnist").train_images.tobytes() == CONTENTS[FIRST][16:]
    check_cache(folder)
    assert Counter(request for request in server.requests if request[0] == "good") == {
        ("good", f"{file}.gz"): 1 for file in CONTENTS
    }
    assert server.sent < 2**26  # an endless file was given up
    if way == "nowhere":
        gc.collect()  # in the test that ignores it


def test_no_more_is_unzipped_than_is_expected(mirrors, monkeypatch):
    body = gzip.compress(bytes(10**8), mtime=0)
    monkeypatch.setattr(Handler, "big_bomb", lambda self: self.answer(body), raising=False)
    mirrors("big_bomb")
    tracemalloc.start()
    with pytest.raises(DataError, match="sent more than the"):
        load("mnist")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 10**6


def test_all_mirrors_are_named(mirrors, server):
    mirrors("forbidden", "html", "circle")
    host = server.address.removeprefix("http://")
    with pytest.raises(DataError) as error:
        load("mnist")
    assert (
        f"could not be downloaded: {FIRST}.gz: {host}: HTTP status 403; "
        f"{host}: sent no gzip file but 'text/html'; "
        f"{host}: redirects lead nowhere, HTTP status 302. Try again, or put its four IDX files"
    ) in str(error.value)


def test_what_is_there_is_not_downloaded_again(tmp_path, mirrors, server):
    mirrors("good")
    load("mnist")
    del server.requests[:]
    folder = tmp_path / "cache" / "mnist"
    (folder / FIRST).write_bytes(CONTENTS[FIRST][:100])  # cut off
    (folder / "t10k-labels-idx1-ubyte").unlink()
    (folder / f"{FIRST}.part").write_bytes(b"of a process that was killed" * 10000)
    load("mnist")
    assert server.requests == [("good", f"{FIRST}.gz"), ("good", "t10k-labels-idx1-ubyte.gz")]
    check_cache(folder)


def test_offline_and_given_folders_use_no_network(tmp_path, mirrors, server):
    mirrors("good")
    for options in ({"offline": True}, {"directory": tmp_path}):
        with pytest.raises(DataError, match="'mnist' was not found"):
            load("mnist", **options)
    assert server.requests == []
    assert not (tmp_path / "cache").exists()


SIXTEEN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from data_files import remote
from tinygrad_nnfs.data import load, sources
sources.SYSTEM = sources.KAGGLE = Path(sys.argv[2]) / "none"
sources.cache_folder = lambda: Path(sys.argv[2])
sources.REMOTES["mnist"] = remote((sys.argv[3] + "/short/", sys.argv[3] + "/good/"))
print("ready", flush=True)
sys.stdin.readline()
print(load("mnist").train_images.sum())
"""


def test_sixteen_processes_download_each_file_once(tmp_path, server):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "NNFS_DATA" and not name.lower().endswith("_proxy")
    }
    arguments = [os.path.dirname(__file__), str(tmp_path / "cache"), server.address]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SIXTEEN, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(16)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 16
    for process in processes:  # now all at once
        process.stdin.write("go\n")
        process.stdin.flush()
    expected = sum(CONTENTS[FIRST][16:])
    assert [process.communicate()[0] for process in processes] == [f"{expected}\n"] * 16
    assert [process.returncode for process in processes] == [0] * 16
    check_cache(tmp_path / "cache" / "mnist")
    assert Counter(server.requests) == {
        (way, f"{file}.gz"): 1 for way in ("short", "good") for file in CONTENTS
    }


def test_a_lock_that_is_never_released(tmp_path, mirrors, monkeypatch):
    from filelock import FileLock

    mirrors("good")
    monkeypatch.setattr(download, "WAIT", 0.1)
    (tmp_path / "cache" / "mnist").mkdir(parents=True)
    with (
        FileLock(tmp_path / "cache" / "mnist" / "lock"),
        pytest.raises(DataError, match=r"another process holds its lock for 0.1 s"),
    ):
        load("mnist")


def test_a_cache_that_cannot_be_written(tmp_path, mirrors, monkeypatch):
    mirrors("good")
    (tmp_path / "cache").write_text("a file, where the folder should be")
    with pytest.raises(DataError, match=r"mnist: cannot be written: .*(exists|directory)"):
        load("mnist")
    (tmp_path / "cache").unlink()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="mnist: cannot be written: No space left on device"):
        load("mnist")
    assert [path.name for path in (tmp_path / "cache" / "mnist").iterdir()] == ["lock"]


def test_an_interrupted_download_leaves_nothing(tmp_path, mirrors, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    mirrors("good")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert [path.name for path in (tmp_path / "cache" / "mnist").iterdir()] == ["lock"]


def test_bars_on_a_terminal(mirrors, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    mirrors("forbidden", "good")
    load("mnist")
    for file in CONTENTS:
        assert file in terminal.getvalue()


@pytest.mark.parametrize("package", ["platformdirs", "filelock", "rich.progress"])
def test_missing_packages_say_what_to_install(tmp_path, mirrors, monkeypatch, package):
    mirrors("good")
    if package == "platformdirs":
        monkeypatch.undo()
        monkeypatch.delenv("NNFS_DATA", raising=False)
        monkeypatch.setattr(sources, "SYSTEM", tmp_path)
        monkeypatch.setattr(sources, "KAGGLE", tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs {package}.*pip install 'tinygrad_nnfs\[models\]'"):
        load("mnist")


def test_the_cache_is_the_users():
    import platformdirs

    assert str(sources.cache_folder()) == platformdirs.user_cache_dir("tinygrad_nnfs", False)


def test_every_remote_is_whole():
    assert list(sources.REMOTES) == [name for name in data.CLASS_NAMES if name != "digits"]
    for mirrors, contents in sources.REMOTES.values():
        assert len(mirrors) >= 2
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors)
        assert list(contents) == list(data.FILES)
        assert all(len(bytes.fromhex(content.sha256)) == 32 for content in contents.values())


def test_stalls_end_in_time(mirrors):
    mirrors("stall", "silent", "drip")
    start = time.monotonic()
    with pytest.raises(DataError, match=r"0.5 s; .* 0.5 s; .* 0.8 s"):
        load("mnist")
    assert time.monotonic() - start < 5
