"""Does loading keep its memory, epoch after epoch? And what do shards behind a web server cost?

    python benchmarks/data_memory.py                      # 8 workers, 20 epochs: some minutes
    python benchmarks/data_memory.py --json benchmarks/results/data_memory.json

Draws pictures, packs half of them into shards and puts half into a folder with a list, and loads
both as one training run would: mixed by ratio, augmented, by worker processes. In the middle of
every epoch it adds up the resident memory (RSS) and the proportional share (PSS: what processes
share counts once) of the main process and its workers, several times, and takes the median. Then
it loads an epoch of the shards alone: local ones, and the same from a web server on this machine,
with no copies yet, with copies, and by byte ranges. Exit code 1 when RSS or PSS of the last epoch
are more than --limit above those of the first. Linux only: reads /proc.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 0.05
LOOKS = 8  # at the memory, in each epoch
MIB = 2**20


# ---------------------------------------------------------------------------------------- the data


def picture(number: int, side: int) -> bytes:
    """A JPEG of about the weight of a photograph of that size."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(stream, "jpeg")
    return stream.getvalue()


def write_shards(folder: Path, shards: int, each: int, side: int) -> None:
    folder.mkdir()
    for k in range(shards):
        with tarfile.open(folder / f"{k:05d}.tar", "w") as archive:
            for number in range(k * each, (k + 1) * each):
                content = {"jpg": picture(number, side), "txt": f"picture {number}".encode()}
                for suffix, data in content.items():
                    info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def write_list(folder: Path, pictures: int, captions: int, side: int) -> None:
    """Pictures in a folder, and a list with so many captions of each."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(pictures):
        (folder / f"images/{number}.jpg").write_bytes(picture(number, side))
        rows += [
            {"image": f"{number}.jpg", "caption": f"number {number}, said {k}"}
            for k in range(captions)
        ]
    (folder / "list.json").write_text(json.dumps(rows), encoding="utf-8")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server for the folder, in a process of its own; its URL."""
    port, ready = multiprocessing.Value("i", 0), multiprocessing.Event()
    process = multiprocessing.Process(target=serve, args=(folder, port, ready), daemon=True)
    process.start()
    try:
        ready.wait()
        yield f"http://127.0.0.1:{port.value}"
    finally:
        process.terminate()
        process.join()


def serve(folder: Path, port: Any, ready: Any) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with (folder / self.path.lstrip("/")).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                wanted = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=")
                start, _, last = wanted.partition("-")
                stop = int(last) + 1 if last else size
                self.send_response(206 if "Range" in self.headers else 200)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
                self.send_header("Content-Length", str(stop - int(start)))
                self.end_headers()
                os.sendfile(self.connection.fileno(), file.fileno(), int(start), stop - int(start))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_address[1]
    ready.set()
    server.serve_forever()


# --------------------------------------------------------------------------------------- measuring


def dataset(builder: str, **options: Any) -> Any:
    """The training split of a data set with small augmented pictures."""
    from lavislite.common.catalog import datasets

    small = {"name": "blip2_image_train", "image_size": 96}
    cls = datasets.get(builder)
    cfg = cls.Config(vis_processor={"train": small, "eval": small}, **options)
    made = cls(cfg, name=builder)
    made.prepare()
    return made.build("train", train=True)


def loader(parts: Sequence[Any], ratios: Sequence[float] | None, args: argparse.Namespace) -> Any:
    from lavislite.datasets.loading import TrainLoader

    return TrainLoader(parts, ratios, batch_size=args.batch, num_workers=args.workers, seed=1)


def memory() -> dict[str, float]:
    """MiB of this process and its workers: RSS and PSS added up, and the main process's RSS."""
    own = usage(os.getpid())
    workers = [usage(child.pid) for child in multiprocessing.active_children() if child.pid]
    return {
        "rss": sum(found["Rss"] for found in [own, *workers]),
        "pss": sum(found["Pss"] for found in [own, *workers]),
        "main_rss": own["Rss"],
    }


def usage(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / MIB for line in lines}


def over_epochs(data: Any, args: argparse.Namespace) -> list[dict[str, float]]:
    """The median memory of each epoch."""
    n = data.batches_per_epoch
    looks = {round((k + 1) * n / (LOOKS + 1)) for k in range(LOOKS)}
    found: list[dict[str, float]] = []
    seen: list[dict[str, float]] = []
    # A few more than are looked at: workers without work end.
    batches = data.batches(0, args.epochs * n + 8)
    for number, _ in zip(range(args.epochs * n), batches, strict=False):
        if number % n in looks:
            seen.append(memory())
        if number % n == n - 1:
            found.append({key: statistics.median(m[key] for m in seen) for key in seen[0]})
            seen = []
            shown = "  ".join(f"{key} {value:.0f}" for key, value in found[-1].items())
            print(f"epoch {len(found)}: {shown} MiB", flush=True)
    return found


def samples_per_second(data: Any, args: argparse.Namespace) -> float:
    """Over an epoch, from its first batch on to its last."""
    n = data.batches_per_epoch
    began = time.perf_counter()
    for _ in data.batches(0, n):
        pass
    return n * args.batch / (time.perf_counter() - began)


def throughput(folder: Path, pattern: str, args: argparse.Namespace) -> dict[str, float]:
    """Samples per second of shards from a web server, as a share of that of local shards."""
    with served(folder / "shards") as url:
        remote = {"annotations": {"train": f"{url}/{pattern}"}, "max_bad_fraction": 0.0}
        copies = dataset("webdataset", **remote)
        ranges = dataset("webdataset", **remote, shard_cache_gb=0.0)
        local = dataset("webdataset", annotations={"train": f"{folder}/shards/{pattern}"})
        rates: dict[str, list[float]] = {key: [] for key in ("local", "first", "copies", "ranges")}
        for _ in range(args.repeat):  # side by side, as the machine's speed may drift
            rates["local"].append(samples_per_second(loader([local], None, args), args))
            for copy in (folder / "cache/shards/data").glob("*.tar"):
                copy.unlink()
            rates["first"].append(samples_per_second(loader([copies], None, args), args))
            rates["copies"].append(samples_per_second(loader([copies], None, args), args))
            rates["ranges"].append(samples_per_second(loader([ranges], None, args), args))
    medians = {key: statistics.median(values) for key, values in rates.items()}
    ratios = {f"{key}_to_local": round(medians[key] / medians["local"], 3) for key in medians}
    return {"local_samples_per_second": round(medians["local"]), **ratios}


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    os.environ["LAVISLITE_CACHE"] = str(folder / "cache")
    half = args.pictures // 2
    write_shards(folder / "shards", args.shards, half // args.shards, args.side)
    write_list(folder / "list", half, args.captions, args.side)
    pattern = f"{{00000..{args.shards - 1:05d}}}.tar"
    shards = dataset("webdataset", annotations={"train": f"{folder}/shards/{pattern}"})
    listed = dataset(
        "image_caption",
        annotations={"train": f"{folder}/list/list.json"},
        images=f"{folder}/list/images",
    )
    epochs = over_epochs(loader([shards, listed], [1.0, 1.0], args), args)
    growth = {key: round(epochs[-1][key] / epochs[0][key] - 1, 4) for key in epochs[0]}
    return {
        "epochs": [{key: round(value, 1) for key, value in epoch.items()} for epoch in epochs],
        "growth": growth,
        "throughput": throughput(folder, pattern, args),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--captions", type=int, default=1, help="of each picture of the list")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--side", type=int, default=256, help="of a picture, in pixels")
    parser.add_argument("--repeat", type=int, default=3, help="the throughput")
    parser.add_argument("--limit", type=float, default=LIMIT, help="of the growth of RSS and PSS")
    parser.add_argument("--folder", type=Path, help="for the temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result: dict[str, Any] = {
            **{key: getattr(args, key) for key in ("workers", "batch", "pictures", "captions")},
            "limit": args.limit,
            **measure(Path(folder), args),
        }
    print(json.dumps({key: result[key] for key in ("growth", "throughput")}, indent=2))
    if args.json:
        from facts import facts

        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result | facts(1), indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    return int(max(result["growth"]["rss"], result["growth"]["pss"]) > args.limit)


if __name__ == "__main__":
    sys.exit(main())
