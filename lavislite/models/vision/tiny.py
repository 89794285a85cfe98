"""The playground's image encoder: a convolutional stem and a few blocks, trained in a minute."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavislite.common import catalog
from lavislite.common.errors import CheckpointError, ConfigError
from lavislite.common.io import atomic_write, cache_dir
from lavislite.common.tensors import load_tensors

PATCH = 8


def playground_weights() -> Path:
    """Where the trained weights are kept once they have been made."""
    return cache_dir() / "playground" / "vision" / "tiny_vit.safetensors"


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]"""
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@catalog.vision_backbones.register("tiny")
class TinyViT(nn.Module):
    """[B, 3, S, S] -> [B, (S/8)**2, width], no class token.

    A linear patch stem does not learn shapes in a minute; convolutions with batch norm do.

    Args:
        weights: "playground" (or null) for those that `projects/blip2/playground_vision.yaml`
            trains, "none" for random ones, or a file.

    Raises:
        ConfigError: the image size does not divide into patches, or the weights are not made yet.
        CheckpointError: the weights are for another size.
    """

    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        image_size: int = 64,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        weights: str | None = "playground",
    ) -> None:
        super().__init__()
        if image_size % PATCH:
            raise ConfigError(
                f"model.vision.image_size: tiny needs a multiple of {PATCH}, got {image_size}."
            )
        self.image_size, self.num_features = image_size, width
        chain = (3, width // 4, width // 2, width)
        self.stem = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.GELU())
                for a, b in pairwise(chain)
            ),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.pos_embed = nn.Parameter(torch.randn(1, (image_size // PATCH) ** 2, width) * 0.6)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        if weights != "none":
            self.load(playground_weights() if weights in (None, "playground") else Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        if x.shape[1] != self.pos_embed.shape[1]:  # a single patch would fit all places
            raise ValueError(f"tiny was built for {self.image_size} x {self.image_size} pixels")
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def save(self, path: Path, metadata: dict[str, str] | None = None) -> None:
        """Write the weights, and what to remember about them, to `path` in one step."""
        from safetensors.torch import save_file

        state = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()
        }
        atomic_write(path, lambda part: save_file(state, part, metadata))

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        if not path.is_file():
            raise ConfigError(
                f"model.vision: the weights of 'tiny' are not at {path}. Make them with\n"
                "  python train.py --cfg-path projects/blip2/playground_vision.yaml"
            )
        state, own = load_tensors(path), self.state_dict()
        if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in own.items()}:
            raise CheckpointError(
                f"{path} holds a TinyViT of another size; this one has width {self.num_features}, "
                f"{len(self.blocks)} blocks and {self.image_size} pixels."
            )
        self.load_state_dict(dict(state))
