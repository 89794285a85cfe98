"""Scores of given image-text pairs (`blip2_image_text_matching`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lavislite.common import catalog
from lavislite.common.errors import UserError
from lavislite.models.blip2.inference import require_keys
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
            UserError: another head.
        """
        if match_head not in ("itm", "itc"):
            raise UserError(f"match_head: expected 'itm' or 'itc', got '{match_head}'.")
        require_keys(samples, ("image", "text_input"), "image-text matching")
        image = self.encode_image(samples["image"])
        if match_head == "itm":
            text = self.pack(samples["text_input"]).to(self.device)
            return self._itm(self.image_memory(image), text.ids, text.mask)
        queries, _ = self.read_image(image)
        sim = torch.einsum(
            "bqe,be->bq", self.project_image(queries), self.embed_text(samples["text_input"])
        )
        return sim.amax(1, keepdim=True)
