"""How much memory it takes to build a model around large weights: once their size, not twice?

    python benchmarks/peak_memory.py                     # 1e9 parameters in bfloat16, in minutes
    python benchmarks/peak_memory.py --dtype fp32 --load-as bf16 --params 5e8 --only language
    python benchmarks/peak_memory.py --json benchmarks/results/peak_memory.json

Writes random weights of that many parameters to a temporary folder, piece by piece:

* language: a Llama in a folder of safetensors shards;
* language-file: the same in one file (`model.language.weights`);
* vision: a timm ViT in one file (`model.vision.weights`).

Then a fresh process builds `blip2_llm` around them, as a run does (configuration, `build_model`),
and watches itself. Peak resident memory counts mapped pages of the files too, which the system may
take back at any time; anonymous memory is what it cannot. Exit code 1 when

    (peak resident memory - resident memory after the imports) / size of the weights

is above --limit. Linux only: reads /proc/self.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIMIT = 1.2
SHARD = 250_000_000  # bytes
CASES = ("language", "language-file", "vision")
GIB = 2**30


# ----------------------------------------------------------------------------- writing the weights


def language_settings(params: float) -> dict[str, Any]:
    """Sizes of a Llama of about so many parameters."""
    width = 64 * max(1, round(math.sqrt(params / 200) / 64))
    table = 2 * 16 * width * width  # two tables of 16 * width words
    layers = max(1, round((params - table) / (13 * width * width)))
    return {
        "vocab_size": 16 * width,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def vision_options(params: float) -> dict[str, int]:
    """Sizes of a ViT of about so many parameters."""
    width = 64 * max(1, round(math.sqrt(params / 400) / 64))
    layers = max(1, round(params / (12 * width * width)))
    return {"embed_dim": width, "depth": layers, "num_heads": width // 64}


def shapes_of(module: Any) -> dict[str, Sequence[int]]:
    """Names and shapes of a module on the meta device."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def pieces(shapes: Mapping[str, Sequence[int]], size: int) -> Iterable[list[str]]:
    """Names in lists of at most SHARD bytes, or of one tensor."""
    now: list[str] = []
    total = 0
    for name, shape in shapes.items():
        if now and total + size * math.prod(shape) > SHARD:
            yield now
            now, total = [], 0
        now.append(name)
        total += size * math.prod(shape)
    yield now


def write_file(shapes: Mapping[str, Sequence[int]], path: Path, dtype: Any) -> None:
    """One safetensors file, one tensor in memory at a time: header length, header, numbers.

    The numbers are the same random million over and over: drawing a billion takes a minute.
    """
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + dtype.itemsize * math.prod(shape)
        kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = (0.02 * torch.randn(1 << 20)).to(dtype)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            count = math.prod(shape)
            numbers = block.repeat(-(-count // len(block)))[:count]
            file.write(numbers.view(torch.uint8).numpy().data)


def write_shards(shapes: Mapping[str, Sequence[int]], folder: Path, dtype: Any) -> None:
    """Shards and their index."""
    parts = list(pieces(shapes, dtype.itemsize))
    where: dict[str, str] = {}
    for k, names in enumerate(parts):
        file = f"model-{k + 1:05d}-of-{len(parts):05d}.safetensors"
        write_file({name: shapes[name] for name in names}, folder / file, dtype)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_language(case: str, params: float, dtype: Any, folder: Path) -> dict[str, Any]:
    """A Llama in `folder`; the section model.language that loads it."""
    import torch
    import transformers
    from tiny_parts import write_tokenizer

    config = transformers.LlamaConfig(**language_settings(params))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    write_tokenizer(folder)
    with torch.device("meta"):
        shapes = shapes_of(transformers.LlamaForCausalLM(config))
    if case == "language":
        write_shards(shapes, folder, dtype)
        return {"name": str(folder)}
    path = folder / "weights" / "all.safetensors"
    path.parent.mkdir()
    write_file(shapes, path, dtype)
    return {"name": str(folder), "weights": str(path)}


def write_vision(params: float, dtype: Any, folder: Path) -> dict[str, Any]:
    """A ViT in `folder`; the section model.vision that loads it."""
    import timm
    import torch

    name, options = "vit_tiny_patch16_224", vision_options(params)
    with torch.device("meta"):
        shapes = shapes_of(timm.create_model(name, num_classes=0, img_size=32, **options))
    path = folder / "vit.safetensors"
    write_file(shapes, path, dtype)
    return {
        "name": f"timm:{name}", "image_size": 32, "weights": str(path), "options": options
    }  # fmt: skip


def write_project(case: str, args: argparse.Namespace, folder: Path) -> Path:
    """Weights and a project file that uses them."""
    import tiny_parts

    from lavislite.models.vision.base import DTYPES

    stored, used = DTYPES[args.dtype], args.load_as or args.dtype
    vision: dict[str, Any] = {"name": "tiny", "image_size": 32, "weights": "none"}
    if case == "vision":
        vision = write_vision(args.params, stored, folder)
        language = {"name": tiny_parts.write_language("OPT", folder / "opt").name}
    else:
        language = write_language(case, args.params, stored, folder)
    model = {
        "arch": "blip2_llm",
        "vision": {**vision, "precision": used},
        "language": {**language, "precision": used},
        "qformer": {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "init": "none"},
        "num_query_tokens": 8,
    }
    project = folder / "project.json"
    run = {"task": "captioning", "device": "cpu"}
    project.write_text(json.dumps({"model": model, "datasets": {}, "run": run}))
    return project


# -------------------------------------------------------------------------------------- measuring


def memory() -> dict[str, int]:
    """Bytes by name, as the system counts them for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = (line.split() for line in lines)
    return {f[0].rstrip(":"): 1024 * int(f[1]) for f in fields if len(f) == 3 and f[2] == "kB"}


class Watch(threading.Thread):
    """Looks at this process's memory many times a second; keeps the highest values."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = {"RssAnon": 0, "RssFile": 0}
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.01):
            seen = memory()
            self.peaks = {name: max(value, seen[name]) for name, value in self.peaks.items()}

    def stop(self) -> dict[str, int]:
        self._done.set()
        self.join()
        return self.peaks


def build_and_watch(project: Path, threads: int) -> dict[str, int]:
    """In a fresh process: build the model of the project; bytes before, at most, and afterwards."""
    import resource

    import torch
    import transformers
    import transformers.models.llama.modeling_llama

    from lavislite.build import build_model
    from lavislite.common.config import resolve
    from lavislite.models.blip2 import stage2  # noqa: F401

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    cfg = resolve(json.loads(project.read_text()), origin=str(project))
    if cfg.model.vision.name.startswith("timm:"):
        import timm  # noqa: F401
    before = memory()
    watch = Watch()
    watch.start()
    model = build_model(cfg)
    peaks, after = watch.stop(), memory()
    part = model.visual_encoder if cfg.model.vision.name != "tiny" else model.language
    return {
        "weights": sum(p.numel() * p.element_size() for p in part.parameters()),
        "parameters": sum(p.numel() for p in part.parameters()),
        "before": before["VmRSS"],
        "before_anonymous": before["RssAnon"],
        "after": after["VmRSS"],
        "after_anonymous": after["RssAnon"],
        "peak": after["VmHWM"],
        "peak_anonymous": peaks["RssAnon"],
        "peak_mapped": peaks["RssFile"],
        "ru_maxrss": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def measure(case: str, args: argparse.Namespace) -> dict[str, float]:
    """Write, build in a process of its own, delete; figures in GiB, and the ratio."""
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        project = write_project(case, args, Path(folder))
        command = [
            sys.executable,
            __file__,
            "--build",
            str(project),
            "--threads",
            str(args.threads),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: the model cannot be built.\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    count = found.pop("parameters")
    weights = found["weights"]
    return {
        "parameters": count,
        **{f"{name}_gib": round(value / GIB, 3) for name, value in found.items()},
        "ratio": round((found["peak"] - found["before"]) / weights, 3),
        "ratio_anonymous": round(
            (found["peak_anonymous"] - found["before_anonymous"]) / weights, 3
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=float, default=1e9)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--load-as", choices=("bf16", "fp32"), help="default: as they are stored")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--limit", type=float, default=LIMIT, help="of the ratio")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the temporary files")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # the fresh process
    args = parser.parse_args(argv)
    if args.build:
        print(json.dumps(build_and_watch(args.build, args.threads)))
        return 0
    result: dict[str, Any] = {
        "dtype": args.dtype,
        "load_as": args.load_as or args.dtype,
        "limit": args.limit,
        "cases": {},
    }
    for case in args.only:
        result["cases"][case] = measure(case, args)
        print(f"{case}: {json.dumps(result['cases'][case], indent=2)}", flush=True)
    if args.json:
        from facts import facts

        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result | facts(args.threads), indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    return int(any(found["ratio"] > args.limit for found in result["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
