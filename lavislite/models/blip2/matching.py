"""Scores of given image-text pairs (`blip2_image_text_matching`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import UserError
from lavislite.models.blip2.calls import require_keys
from lavislite.models.blip2.stage1 import Blip2Qformer


@catalog.models.register("blip2_image_text_matching")
class Blip2ITM(Blip2Qformer):
    """A stage-1 model whose `forward` scores pairs instead of computing losses."""

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self, samples: dict[str, Any], match_head: str = "itm"
    ) -> Tensor:
        """Score image b with text b; texts may differ in length.

        Returns:
            "itm": logits [B, 2] of (no match, match); "itc": cosine [B, 1] of the best query.

        Raises:
            UserError: another head, or not one text per image.
        """
        if match_head not in ("itm", "itc"):
            raise UserError(f"match_head: expected 'itm' or 'itc', got '{match_head}'.")
        require_keys(samples, ("image", "text_input"), "image-text matching")
        image = self.encode_image(samples["image"])
        text = self.pack_pairs(samples)
        if match_head == "itm":
            return self._itm(self.image_memory(image), text.ids, text.mask)
        queries, _ = self.read_image(image)
        rows = self.Qformer.encode_text(text.ids, text.mask, cls_only=True)[:, 0]
        sim = torch.einsum("bqe,be->bq", self.project_image(queries), self.project_text(rows))
        return sim.amax(1, keepdim=True)
