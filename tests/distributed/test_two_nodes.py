"""Two machines, one of which is lost and comes back: two launchers, where possible with a network.

`TORCH_DISABLE_SHARE_RDZV_TCP_STORE`: without it a launcher of torch 2.15 that has survived does not
tell one that joins anew where the processes are to meet, and both give up.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import (
    command,
    end_all,
    free_port,
    rows,
    start,
    torchrun,
    wait_for,
    write_project,
)

pytestmark = pytest.mark.slow


@dataclass
class Node:
    """How to run something on a machine, and its address."""

    prefix: list[str]
    address: str
    device: str


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture(params=["one network", "namespaces"])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    if request.param == "one network":
        yield [Node([], "127.0.0.1", "lo")] * 2
        return
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    names = [f"lavislite{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        a, b = names
        _ip("link", "add", "eth-a", "netns", a, "type", "veth", "peer", "eth-b", "netns", b)
        found = []
        for name, device, address in (a, "eth-a", "10.77.0.1"), (b, "eth-b", "10.77.0.2"):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            found.append(Node(["ip", "netns", "exec", name], address, device))
        yield found
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write_project(tmp_path)
    yield tmp_path
    end_all(tmp_path)


def launch(node: Node, first: Node, port: int, folder: Path, name: str) -> subprocess.Popen[str]:
    line = torchrun(
        "--nnodes=2",
        "--nproc-per-node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={first.address}:{port}",
        f"--rdzv-conf=is_host={int(name == 'a')}",
        "--rdzv-id=two-nodes",
        f"--local-addr={node.address}",
    )
    options = ("run.dist_warn_seconds=3", "run.max_steps=16")
    return start(
        [*node.prefix, *line, *command(folder / "toy.yaml", *options)],
        folder,
        name,
        GLOO_SOCKET_IFNAME=node.device,
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        RES_OPTIONS="timeout:1 attempts:1",  # nobody answers questions about names there
        PAUSE="0.5",
    )


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_node_is_lost_and_comes_back(how: str, nodes: list[Node], folder: Path) -> None:
    if how == "unplugged" and not nodes[1].prefix:
        pytest.skip("there is no cable to pull")
    port = free_port()
    first = launch(nodes[0], nodes[0], port, folder, "a")
    second = launch(nodes[1], nodes[0], port, folder, "b")
    saved = lambda step: list(folder.glob(f"output/toy/2*/checkpoints/step_{step}"))  # noqa: E731
    try:
        wait_for(lambda: saved(4), 120, "a checkpoint")
        workers = children(second.pid)
        if how == "killed":
            for pid in (second.pid, *workers):
                os.kill(pid, signal.SIGKILL)
        else:
            _ip("-n", nodes[1].prefix[-1], "link", "set", nodes[1].device, "down")
            gone = lambda: "has not answered for" in (folder / "b.txt").read_text()  # noqa: E731
            wait_for(gone, 60, "that the lost one gives up")
            second.kill()
        lost = lambda: "rank 1 ended without a message" in (folder / "a.txt").read_text()  # noqa: E731
        wait_for(lost, 60, "that the other one notices")
        if how == "unplugged":
            _ip("-n", nodes[1].prefix[-1], "link", "set", nodes[1].device, "up")
        second.wait()
        second = launch(nodes[1], nodes[0], port, folder, "b")
        assert first.wait(timeout=180) == 0, (folder / "a.txt").read_text()[-3000:]
        assert second.wait(timeout=60) == 0
    finally:
        first.kill()
        second.kill()
    said = (folder / "a.txt").read_text() + (folder / "b.txt").read_text()
    assert "This launch has been here before" in said
    assert [row["step"] for row in rows(folder)] == list(range(1, 17))
