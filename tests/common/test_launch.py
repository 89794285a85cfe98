"""What torchrun and srun say is understood; a launch is known again."""

from __future__ import annotations

import pytest

from lavislite.common import launch
from lavislite.common.launch import Launch


def test_no_launcher_means_one_process() -> None:
    assert launch.launch_environment({}) is None
    assert launch.launch_environment({"RANK": "0", "WORLD_SIZE": "1"}) is None


def test_torchrun() -> None:
    environ = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "n0",
        "MASTER_PORT": "1",
    }
    assert launch.launch_environment(environ) == environ


def test_srun() -> None:
    found = launch.launch_environment(
        {
            "SLURM_PROCID": "9",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NUM_TASKS": "16",
            "SLURM_NTASKS": "99",
            "SLURM_JOB_ID": "123456",
            "SLURM_STEP_NODELIST": "gpu[07-09,12],cpu1",
        }
    )
    assert found == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
    }


def test_a_plain_python_in_a_batch_script_stays_one_process() -> None:
    batch_step = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert launch.launch_environment(batch_step) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("a-1,b", "a-1"), ("n[001-4]", "n001"), ("n[3,7]", "n3")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert launch.first_host(nodes) == first


def test_torchrun_is_known_by_its_id() -> None:
    first = Launch.of({"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "0"})
    again = Launch.of({"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert set(first.names) & set(again.before)
    assert (first.restarted, again.restarted) == (False, True)
    assert not set(first.names) & set(Launch.of({"TORCHELASTIC_RUN_ID": "other"}).before)


def test_without_an_id_torchrun_is_known_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"TORCHELASTIC_RUN_ID": "none"}
    first = Launch.of(environ)
    assert Launch.of(environ) == first
    monkeypatch.setattr(launch.os, "getppid", lambda: 1)
    assert not set(first.names) & set(Launch.of(environ).before)


def test_a_slurm_job_looks_back_only_when_it_was_requeued() -> None:
    first = Launch.of({"SLURM_JOB_ID": "7"})
    requeued = Launch.of({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert set(first.names) & set(requeued.before)
    assert requeued.restarted
    assert not first.before  # a second training in the same job is another one


def test_a_plain_python_has_no_name() -> None:
    assert Launch.of({}) == Launch()


def test_only_torchruns_processes_ask_for_their_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {
        name: launch.launcher_has_gone(environ)
        for name, environ in {"torchrun": {"TORCHELASTIC_RUN_ID": "x"}, "shell": {}}.items()
    }
    assert not any(gone() for gone in asked.values())
    monkeypatch.setattr(launch.os, "getppid", lambda: 1)
    assert {name: gone() for name, gone in asked.items()} == {"torchrun": True, "shell": False}
