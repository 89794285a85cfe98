"""One process works, all answer for it."""

from __future__ import annotations

from typing import Any

import pytest

from lavislite.common import distributed
from lavislite.common.errors import DataError, UserError
from lavislite.common.together import on_each_machine, on_main
from tests.tasks.fakes import run_processes


def test_one_process_does_its_work_itself() -> None:
    assert on_main(lambda: 3) == 3
    assert on_each_machine(lambda: 3) is None
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 // 0)


def two() -> dict[str, Any]:
    worked: list[int] = []

    def work() -> str:
        worked.append(distributed.rank())
        return f"from {distributed.rank()}"

    def fail(error: Exception) -> Any:
        def work() -> None:
            raise error

        try:
            return on_main(work)
        except Exception as raised:
            return type(raised), str(raised), getattr(raised, "shared", False)

    said = on_main(work)
    on_each_machine(work)
    return {
        "said": said,
        "worked": worked,
        "ours": fail(DataError("row 7 has no text")),
        "others": fail(KeyError("row")),
    }


def test_the_main_process_speaks_for_both() -> None:
    main, other = run_processes(2, two)
    assert main["said"] == other["said"] == "from 0"
    assert main["worked"] == [0, 0]
    assert other["worked"] == []  # both are on one machine
    assert main["ours"] == other["ours"] == (DataError, "row 7 has no text", True)
    assert main["others"] == (KeyError, "'row'", True)
    assert other["others"] == (UserError, "'row'", True)
