"""Files appear whole, downloads resume and are checked, checkpoints are read safely."""

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
import torch
from safetensors.torch import save_file

from lavislite.common import io, tensors
from lavislite.common.errors import CheckpointError, DataError, UserError

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
    monkeypatch.setattr(io.time, "sleep", lambda _: None)
    served = Server()
    yield served
    served.http.shutdown()
    served.http.server_close()


def test_a_download_happens_once(server: Server) -> None:
    path = io.fetch(server.url)
    assert path.read_bytes() == CONTENT
    assert path.name == "weights.bin"
    assert io.fetch(server.url) == path
    assert len(server.ranges) == 1


def test_an_interrupted_download_goes_on_where_it_broke_off(server: Server) -> None:
    server.cut_after = [1000, 3000]
    assert io.fetch(server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=4000-"]


def test_a_download_interrupted_in_another_process_goes_on(server: Server) -> None:
    server.cut_after = [1000]
    server.status = []
    code = "import sys; from lavislite.common import io; io._ATTEMPTS = 0; io.fetch(sys.argv[1])"
    failed = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True)
    assert failed.returncode != 0
    assert not io.cached_path(server.url).exists()  # nothing under the final name
    assert io.fetch(server.url).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=1000-"


def test_a_file_that_changed_meanwhile_is_fetched_afresh(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cut_after = [1000]
    other = b"new" * 2000

    def changed(_: float) -> None:
        server.content, server.etag = other, '"two"'

    monkeypatch.setattr(io.time, "sleep", changed)
    assert io.fetch(server.url).read_bytes() == other


def test_a_short_outage_is_survived_and_a_missing_file_is_not_asked_for_again(
    server: Server,
) -> None:
    server.status = [503, 503]
    assert io.fetch(server.url).read_bytes() == CONTENT
    server.status = [404]
    with pytest.raises(UserError, match=r"404.*by hand"):
        io.fetch(server.url + "x")
    assert len(server.ranges) == 4


def test_without_a_network_one_sentence_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown_host(*_: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", unknown_host)
    monkeypatch.setattr("time.sleep", None)
    with pytest.raises(UserError, match=r"no connection to nowhere\.invalid\. Without a network"):
        io.fetch("http://nowhere.invalid/weights.bin")
    assert not caplog.records


def test_a_wrong_checksum_is_refused_and_not_kept(server: Server) -> None:
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(UserError, match="SHA-256"):
        io.fetch(server.url, sha256="0" * 64)
    assert not io.cached_path(server.url).exists()
    assert io.fetch(server.url, sha256=right).read_bytes() == CONTENT


def test_processes_that_start_together_download_once(server: Server) -> None:
    code = "import sys; from lavislite.common import io; print(io.fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, server.url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in running}
    assert len(server.ranges) == 1
    assert [Path(path).read_bytes() for path in paths] == [CONTENT]


def test_local_paths_are_used_in_place(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"x")
    assert io.fetch(file) == file
    assert io.fetch(file.as_uri()) == file
    with pytest.raises(UserError, match=r"Did you mean 'weights.pth'"):
        io.fetch(tmp_path / "weight.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.txt"
    io.atomic_write_text(file, "old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        io.atomic_write(file, half)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    def write(text: str) -> None:
        io.atomic_write(
            tmp_path / "step", lambda part: (part.mkdir(), (part / text).write_text(text))[0]
        )

    write("a")
    write("b")
    assert [file.name for file in (tmp_path / "step").iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step"]


def test_bad_json_is_located(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
    with pytest.raises(DataError, match=r"a.json.*line 2, column 7"):
        io.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["pt", "nested", "legacy", "safetensors", "folder", "shards"])
def test_tensors_come_from_every_usual_file(tmp_path: Path, kind: str) -> None:
    state = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "pt":
        torch.save(state, path)
    elif kind == "nested":
        torch.save({"model": state, "epoch": 3}, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "folder":
        path = tmp_path
        save_file(state, tmp_path / "model.safetensors")
    else:
        path = tmp_path
        for name in state:
            save_file({name: state[name]}, tmp_path / f"{name}.safetensors")
        index = '{"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}'
        (tmp_path / "model.safetensors.index.json").write_text(index)
    loaded = tensors.load_tensors(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this ran",))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth.*Python objects"):
        tensors.load_tensors(tmp_path / "evil.pth")
    assert "this ran" not in capsys.readouterr().out


def test_the_class_in_a_pickle_is_named_and_a_way_out_shown(tmp_path: Path) -> None:
    from argparse import Namespace

    from omegaconf import OmegaConf

    state = {"a": torch.ones(1)}
    for config, name in (
        (OmegaConf.create({"lr": 1}), "omegaconf.dictconfig.DictConfig"),
        (Namespace(lr=1), "argparse.Namespace"),
    ):
        torch.save({"model": state, "config": config}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=rf"w.pth.*\({name}\).*save its tensors alone"):
            tensors.load_tensors(tmp_path / "w.pth")


def test_plain_values_beside_the_weights_can_be_read(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "config": {"arch": "x"}}, tmp_path / "w.pth")
    assert tensors.torch_content(tmp_path / "w.pth")["config"] == {"arch": "x"}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "whole")
    if name.endswith(".safetensors"):
        save_file({"a": torch.ones(100)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in (0, 7, 300, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            tensors.load_tensors(tmp_path / name)


def test_a_file_of_another_kind_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("model: {}")
    with pytest.raises(CheckpointError, match=r"w\.pth: not a PyTorch checkpoint"):
        tensors.load_tensors(tmp_path / "w.pth")
