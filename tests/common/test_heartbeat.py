"""Who waits for whom, in words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from lavislite.common.heartbeat import (
    COMPUTING,
    EVALUATING,
    LOADING,
    SAVING,
    Beat,
    Progress,
    explain,
    ranks,
)


def computing(step: int, **more: object) -> Beat:
    return Beat(step, COMPUTING, **{"still": 60.0, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("beats", "text"),
    [
        (
            [computing(120), Beat(119, LOADING, still=58, where="images.py:7"), computing(120)],
            "ranks 0, 2 wait at step 120 (forward and backward) since 60 s; "
            "rank 1 is at step 119 (loading data, images.py:7) since 58 s",
        ),
        (
            [Beat(5, SAVING, still=61), *[Beat(5, SAVING, True, 60)] * 3],
            "ranks 1-3 wait at step 5 (saving) since 60 s; rank 0 is at step 5 (saving) since 61 s",
        ),
        (
            [computing(8), computing(8, silent=9)],
            "rank 0 waits at step 8 (forward and backward) since 60 s; "
            "rank 1 has not been heard of for 9 s, last at step 8 (forward and backward)",
        ),
        (
            [computing(9, waits=True), computing(8)],
            "rank 0 waits at step 9 (forward and backward) since 60 s; "
            "rank 1 is at step 8 (forward and backward) since 60 s",
        ),
        (  # who of them waits for the gradients cannot be seen; the line of code tells
            [computing(8, where="step.py:70"), computing(8, where="model.py:3")],
            "rank 0 is at step 8 (forward and backward, step.py:70) since 60 s; "
            "rank 1 is at step 8 (forward and backward, model.py:3) since 60 s",
        ),
        (
            [Beat(8, SAVING, True, 60), Beat(8, EVALUATING, True, 60)],
            "rank 0 waits at step 8 (saving) since 60 s; rank 1 waits at step 8 (evaluating) "
            "since 60 s; all of them wait: not in the same exchange, or for the network",
        ),
    ],
)
def test_the_sentence_names_who_waits_and_who_is_waited_for(beats: list[Beat], text: str) -> None:
    assert explain(dict(enumerate(beats)), silent_after=5) == text


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "rank 3"), ([0, 2, 3, 4, 7], "ranks 0, 2-4, 7")]
)
def test_ranks(numbers: list[int], text: str) -> None:
    assert ranks(numbers) == text


def test_progress_knows_an_exchange_and_the_line_where_it_stands() -> None:
    progress = Progress()
    progress.at(3, LOADING)
    assert not progress.beat(locate_after=9).waits
    with ThreadPoolExecutor() as pool, progress.waiting():
        beat = pool.submit(progress.beat, locate_after=0).result()
    assert beat.waits
    with pytest.raises(ValueError, match="boom"), progress.waiting():
        raise ValueError("boom")
    assert not progress.waits  # also after an error
    assert beat.where.startswith("test_heartbeat.py:")
    assert (beat.step, beat.doing) == (3, LOADING)
