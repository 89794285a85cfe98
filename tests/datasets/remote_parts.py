"""A web server for a folder, which can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Site:
    """What the server does.

    Attributes:
        url: where it is.
        ranges: it understands the Range header.
        failing: file name -> so many of the next answers are 503 (or the connection just ends).
        cut: so many of the next answers that go to the file's end stop half-way.
        gone: names of files that are answered with 404.
        asked: file name -> requests; whole: those that wanted the whole file.
        sent: bytes.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    failing: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    gone: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    sent: int = 0

    def etag(self, name: str) -> str:
        return f'"{(self.folder / name).stat().st_mtime_ns}"'


@contextmanager
def serving(folder: Path) -> Iterator[Site]:
    """Serve `folder` on this machine."""
    site = Site(folder)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            with lock:
                site.asked[name] += 1
                if wanted is None:
                    site.whole[name] += 1
                to_the_end = wanted is None or not wanted[2]
                fail, cut = site.failing[name] > 0, site.cut[name] > 0 and to_the_end
                site.failing[name] -= fail
                site.cut[name] -= cut
            if name in site.gone or not (site.folder / name).is_file():
                return self.send_error(404)
            if fail:
                return self.send_error(503)
            content = (site.folder / name).read_bytes()
            start, stop = 0, len(content)
            if wanted and site.ranges:
                start = int(wanted[1])
                stop = min(stop, int(wanted[2]) + 1) if wanted[2] else stop
            body = content[start : start + (stop - start) // 2] if cut else content[start:stop]
            with lock:
                site.sent += len(body)
            self.send_response(206 if wanted and site.ranges else 200)
            if wanted and site.ranges:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.send_header("ETag", site.etag(name))
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            with suppress(ConnectionError):  # who only wanted to know the size has hung up
                self.wfile.write(body)
            return None

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
