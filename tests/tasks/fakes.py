"""A model that looks its scores up in tables, a dataset of numbered images, and real processes."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class FakeRetrieval(torch.utils.data.Dataset):
    """Image i is the tensor full of i; text t is ``"text <t>"`` padded to some length."""

    name, split, evaluation = "fake", "test", "retrieval"

    def __init__(self, captions_per_image: list[int], broken: tuple[int, ...] = ()) -> None:
        self.text_to_image = [i for i, n in enumerate(captions_per_image) for _ in range(n)]
        self.image_to_texts: list[list[int]] = [[] for _ in captions_per_image]
        for text, image in enumerate(self.text_to_image):
            self.image_to_texts[image].append(text)
        self.texts = [f"text {t} " + "x" * (7 * t % 5) for t in range(len(self.text_to_image))]
        self.image_ids = [f"id{i}" for i in range(len(captions_per_image))]
        self.image_paths = [Path(f"images/{i}.jpg") for i in range(len(captions_per_image))]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> dict[str, Any] | None:
        return None if i in self.broken else {"image": torch.full((3, 2, 2), float(i)), "index": i}

    def collate(self, samples: list[dict[str, Any] | None]) -> dict[str, Any]:
        good = [s for s in samples if s is not None]
        if not good:
            return {}
        return {
            "image": torch.stack([s["image"] for s in good]),
            "index": torch.tensor([s["index"] for s in good]),
        }

    def record_id(self, i: int) -> str:
        return f"image {self.image_ids[i]}"


class FakeRanker(nn.Module):
    """`itc` [Q, N, M] as similarity per query, `itm` [N, M] as match logits; counts its work."""

    def __init__(self, itc: Tensor, itm: Tensor | None = None, temp: float = 0.5) -> None:
        super().__init__()
        self.itc, self.temp = itc, nn.Parameter(torch.tensor([temp]))
        self.memories: list[list[int]] = []
        self.pairs: list[tuple[int, int]] = []
        self.forwards: list[list[str]] = []
        if itm is not None:
            self.itm = itm
            self.image_memory = self._image_memory
            self.score_itm = self._score_itm

    def embed_image(self, image: Tensor) -> SimpleNamespace:
        index = image[:, 0, 0, 0].long()
        # Texts are one-hot in a space of M dimensions, so the table itself is the image feature.
        return SimpleNamespace(
            image_feats=self.itc[:, index].transpose(0, 1),
            image_embeds=index[:, None, None].float(),
        )

    def embed_text(self, texts: list[str]) -> Tensor:
        return torch.eye(self.itc.shape[-1])[[number(t) for t in texts]]

    def _image_memory(self, image_embeds: Tensor) -> Tensor:
        index = image_embeds[:, 0, 0].long()
        self.memories.append(index.tolist())
        return index

    def _score_itm(self, memory: Tensor, image_index: Tensor, texts: list[str]) -> Tensor:
        images, numbers = memory[image_index], [number(t) for t in texts]
        self.pairs += list(zip(images.tolist(), numbers, strict=True))
        self.forwards.append(texts)
        return self.itm[images, numbers]


def number(text: str) -> int:
    return int(text.split()[1])


def run_processes(n: int, work: Callable[[], Any], *, timeout: float = 60) -> list[Any]:
    """What `work()` returns in each of `n` real processes joined over gloo."""
    context = multiprocessing.get_context("fork")  # fork: children need not import torch again
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    jobs = [context.Process(target=_child, args=(r, n, port, work, queue)) for r in range(n)]
    for job in jobs:
        job.start()
    try:
        results = dict(queue.get(timeout=timeout) for _ in jobs)
    finally:
        for job in jobs:
            job.join(timeout=5)
            job.kill()
    return [results[r] for r in range(n)]


def _child(rank: int, n: int, port: int, work: Callable[[], Any], queue: Any) -> None:
    import os

    from lavislite.common import distributed

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(n), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1"
    )
    os.environ["MASTER_PORT"] = str(port)
    distributed.init_distributed(timeout_minutes=1, device="cpu")
    try:
        result: Any = work()
    except Exception as error:
        result = error
    queue.put((rank, result))
    distributed.barrier()
    distributed.shutdown()
