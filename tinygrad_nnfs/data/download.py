"""Downloads: whatever one mirror does, the next is tried, and only what was checked is kept.

pooch would fit but for two things: its checksums are of the file as sent, which differs between
mirrors (they compress for themselves), and it knows one address for a file.
"""

import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tinygrad_nnfs.data.formats import FILES, DataError, reason
from tinygrad_nnfs.data.sources import Content, Remote, is_complete

STALL = 10.0  # seconds without a byte, after which a mirror is given up
TOTAL = 600.0  # seconds that a mirror may take for a file
WAIT = 3600.0  # seconds to wait for another process that downloads the same set
CHUNK = 2**16  # bytes read at once; also what gzip may add to a file, with room to spare


class MirrorError(Exception):
    """A mirror did not send the file; the message says what it did instead."""


def fetch(remote: Remote, folder: Path) -> None:
    """Download the files of a set that `folder` lacks.

    Any number of processes may do this at once: one downloads, the others wait. Raises DataError
    with what each mirror did, or if `folder` cannot be written.
    """
    try:
        from filelock import FileLock, Timeout
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    except ImportError as error:
        raise DataError(
            f"a download needs {error.name}: pip install 'tinygrad_nnfs[models]'"
        ) from None
    bars = Progress(
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock", timeout=WAIT), bars:
            for part, content in remote.contents.items():
                path = folder / FILES[part]
                if is_complete(path, content.size):
                    continue
                bar = bars.add_task(path.name, total=content.size)
                _fetch_file(
                    path,
                    remote.mirrors,
                    content,
                    lambda size, bar=bar: bars.update(bar, completed=size),  # type: ignore[misc]
                )
    except Timeout:
        raise DataError(f"{folder}: another process holds its lock for {WAIT:g} s") from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DataError(f"{folder}: cannot be written: {reason(error)}") from None


def _fetch_file(
    path: Path, mirrors: tuple[str, ...], content: Content, show: Callable[[int], None]
) -> None:
    """Download `path` from the first mirror that sends just this content."""
    unfinished = path.with_name(path.name + ".part")  # only who holds the lock writes it
    failures = []
    try:
        for mirror in mirrors:
            digest = hashlib.sha256()
            size = 0
            try:
                with unfinished.open("wb") as file:
                    for piece in _receive(f"{mirror}{path.name}.gz", content.size):
                        file.write(piece)
                        digest.update(piece)
                        size += len(piece)
                        show(size)
                if digest.hexdigest() != content.sha256:
                    raise MirrorError(f"wrong checksum (SHA-256 {digest.hexdigest()[:12]}...)")
            except MirrorError as error:
                failures.append(f"{urlsplit(mirror).netloc}: {error}")
            else:
                os.replace(unfinished, path)
                return
    finally:
        unfinished.unlink(missing_ok=True)
    raise DataError(f"{path.name}.gz: {'; '.join(failures)}")


def _receive(url: str, size: int) -> Iterator[bytes]:
    """The content of a .gz file, uncompressed in pieces: `size` bytes at most.

    Raises MirrorError for everything that a server can do, except for other content.
    """
    deadline = time.monotonic() + TOTAL
    unzip = zlib.decompressobj(wbits=31)  # gzip
    received = unzipped = 0
    request = urllib.request.Request(url, headers={"User-Agent": "tinygrad_nnfs"})
    try:
        with urllib.request.urlopen(request, timeout=STALL) as response:
            while not unzip.eof:
                chunk = response.read1(CHUNK)
                if not chunk:
                    raise MirrorError(f"the file ended early, after {received:,} bytes")
                if not received and not chunk.startswith(b"\x1f"):
                    kind = response.headers.get_content_type()
                    raise MirrorError(f"sent no gzip file but {kind[:40]!r}")
                received += len(chunk)
                piece = unzip.decompress(chunk, size - unzipped + 1)
                unzipped += len(piece)
                if unzipped > size or received > size + CHUNK:
                    raise MirrorError(f"sent more than the {size:,} bytes expected")
                if time.monotonic() > deadline:
                    raise MirrorError(f"took more than {TOTAL:g} s")
                yield piece
    except urllib.error.HTTPError as error:
        error.close()
        status = f"HTTP status {error.code}"
        redirects = 300 <= error.code < 400  # what urllib does not follow any more
        raise MirrorError(f"redirects lead nowhere, {status}" if redirects else status) from None
    except http.client.HTTPException as error:
        raise MirrorError(f"sent no whole HTTP answer ({type(error).__name__})") from None
    except zlib.error:
        raise MirrorError("sent a damaged gzip file") from None
    except (OSError, ValueError) as error:  # ValueError: a redirect to what is no address
        cause = getattr(error, "reason", error)  # of a URLError
        if isinstance(cause, TimeoutError):
            raise MirrorError(f"sent nothing for {STALL:g} s") from None
        raise MirrorError(reason(cause) if isinstance(cause, Exception) else str(cause)) from None
