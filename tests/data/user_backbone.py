import torch
from torch import nn

from lavislite import registry


@registry.vision_backbones.register("my_cnn")
class MyCNN(nn.Module):
    num_features = 64  # width of the tokens

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, self.num_features, kernel_size=16, stride=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W]
        return self.net(images).flatten(2).transpose(1, 2)  # [B, tokens, 64]
