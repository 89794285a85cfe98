"""A web server on this machine, as helpful or as unhelpful as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from lavislite.common import transfer
from lavislite.download import description


@dataclass
class Page:
    """What the server answers at one path."""

    content: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # per request: hang up after so many bytes
    stall_after: int | None = None  # send so many bytes, then nothing until the test ends
    status: list[int] = field(default_factory=list)  # per request: this error instead
    redirect: str | None = None


class Server:
    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range of every request
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers.get("Range")))
                page = server.pages.get(self.path)
                if page is None or page.status:
                    self.send_error(page.status.pop(0) if page else 404)
                    return
                if page.redirect is not None:
                    self.send_response(302)
                    self.send_header("Location", page.redirect)
                    self.end_headers()
                    return
                self.answer(page)

            def answer(self, page: Page) -> None:
                start, code = 0, 200
                wanted = self.headers.get("Range")
                if page.ranges and wanted and self.headers.get("If-Range") == page.etag:
                    start, code = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                body = page.content[start:]
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                if page.etag is not None:
                    self.send_header("ETag", page.etag)
                self.end_headers()
                if page.stall_after is not None:
                    self.wfile.write(body[: page.stall_after])
                    self.wfile.flush()
                    server.over.wait(30)
                elif page.cut_after:
                    self.wfile.write(body[: page.cut_after.pop(0)])
                else:
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.http.server_port}"
        run = self.http.serve_forever
        threading.Thread(target=run, args=(0.01,), daemon=True).start()

    def put(self, path: str, content: bytes, **options: Any) -> str:
        """Serve `content` at `path`; returns the URL."""
        self.pages[path] = Page(content, **options)
        return self.base + path

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    served = Server()
    yield served
    served.close()


class Catalogue:
    """A folder of descriptions in place of the package's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shared.yaml").write_text("{}")

    def write(self, name: str = "pets", **content: Any) -> None:
        head = {"title": "Pets", "homepage": "https://pets.invalid", "licence": "free"}
        body = yaml.safe_dump({**head, "builders": ["image_caption"], **content})
        (self.folder / f"{name}.yaml").write_text(body)


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    folder = tmp_path / "descriptions"
    folder.mkdir()
    monkeypatch.setattr(description, "FOLDER", folder)
    return Catalogue(folder)


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait, with the real clock, until `condition()` holds."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        pause.wait(0.02)
