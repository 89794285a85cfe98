"""The benchmark of the paper's recipes writes its page."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    import scaling

    monkeypatch.setattr(scaling, "NUMBERS", (8,))
    out = tmp_path / "scaling.md"
    assert scaling.main(["--only", "pretrain_stage1_vitg", "--out", str(out)]) == 0
    page = out.read_text()
    assert "| pretrain_stage1_vitg | 1.17 B | 187 M |" in page
    assert "under 144" in page
    assert "| 8 | 210 |" in page
