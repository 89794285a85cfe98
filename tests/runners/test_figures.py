"""The report's pictures hold whatever a run has measured."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from lavislite.runners.figures import LIGHT, metric_figure


def test_a_hundred_metrics_fit_into_the_figure() -> None:
    def height(names: int) -> int:
        curves = {
            f"data_{k}/val/acc_other_image_type_{k}": [(0.0, 1.0), (1.0, k)] for k in range(names)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns when axes have no room left
            content = metric_figure(curves, LIGHT)
        assert content is not None
        return Image.open(io.BytesIO(content)).height

    assert height(2) == height(12) < height(40) < height(100)
