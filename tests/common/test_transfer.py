"""Downloads resume and are checked; local paths are used in place."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lavislite.common import transfer
from lavislite.common.errors import UserError

CONTENT = bytes(range(256)) * 40


class Server:
    """Serves CONTENT at every path, with ranges; hangs up early as often as it is told to."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag = '"one"'
        self.cut_after: list[int] = []  # per request: hang up after so many bytes
        self.status: list[int] = []  # per request: answer this error instead
        self.ranges: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.ranges.append(self.headers.get("Range"))
                if server.status:
                    self.send_error(server.status.pop(0))
                    return
                start, code = 0, 200
                wanted = self.headers.get("Range")
                if wanted and self.headers.get("If-Range") == server.etag:
                    start, code = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                self.send_response(code)
                self.send_header("Content-Length", str(len(server.content) - start))
                self.send_header("ETag", server.etag)
                self.end_headers()
                body = server.content[start:]
                self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/weights.bin"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer.time, "sleep", lambda _: None)
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_a_download_happens_once(server: Server) -> None:
    path = transfer.fetch(server.url)
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.bin"
    assert transfer.fetch(server.url) == path
    assert len(server.ranges) == 1


def test_an_interrupted_download_goes_on_where_it_broke_off(server: Server) -> None:
    server.cut_after = [1000, 3000]
    assert transfer.fetch(server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=4000-"]


def test_a_download_interrupted_in_another_process_goes_on(server: Server) -> None:
    server.cut_after = [1000]
    server.status = []
    once = "import lavislite.common.transfer as t; t._ATTEMPTS = 0"
    code = f"import sys; {once}; t.fetch(sys.argv[1])"
    failed = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True)
    assert failed.returncode != 0
    assert not transfer.cached_path(server.url).exists()  # nothing under the final name
    assert transfer.fetch(server.url).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"


def test_a_file_that_changed_meanwhile_is_fetched_afresh(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after = [1000]
    other = b"new" * 2000

    def changed(_: float) -> None:
        server.content, server.etag = other, '"two"'

    monkeypatch.setattr(transfer.time, "sleep", changed)
    assert transfer.fetch(server.url).read_bytes() == other


def test_a_short_outage_is_survived_and_a_missing_file_is_not_asked_for_again(
    server: Server,
) -> None:
    server.status = [503, 503]
    assert transfer.fetch(server.url).read_bytes() == CONTENT
    server.status = [404]
    with pytest.raises(UserError, match=r"404.*by hand"):
        transfer.fetch(server.url + "x")
    assert len(server.ranges) == 4


def test_without_a_network_one_sentence_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown_host(*_: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr("time.sleep", None)
    with pytest.raises(UserError, match=r"no connection to nowhere\.invalid\. Without a network"):
        transfer.fetch("http://nowhere.invalid/weights.bin")
    assert not caplog.records


def test_a_wrong_checksum_is_refused_and_not_kept(server: Server) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(UserError, match="SHA-256"):
        transfer.fetch(server.url, sha256="0" * 64)
    assert not transfer.cached_path(server.url).exists()
    assert transfer.fetch(server.url, sha256=right).read_bytes() == CONTENT


def test_processes_that_start_together_download_once(server: Server) -> None:
    code = "import sys; from lavislite.common import transfer; print(transfer.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, server.url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in running}
    assert len(server.ranges) == 1
    assert [Path(path).read_bytes() for path in paths] == [CONTENT]


def test_local_paths_are_used_in_place(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"x")
    assert transfer.fetch(file) == file
    assert transfer.fetch(file.as_uri()) == file
    with pytest.raises(UserError, match=r"Did you mean 'weights.pth'"):
        transfer.fetch(tmp_path / "weight.pth")
