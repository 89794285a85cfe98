"""A machine that has all the data sets, in a few pictures each, and small stand-ins for weights."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from lavislite.common.config import Config
from tests.models.language.tiny import save_tiny

SIZE = 28  # pixels: two by two patches of the published image encoders
VOCABULARY = Path(__file__).parent / "data" / "lavis_stage1"  # of BERT's kind
ANSWERS = ["two", "two", "two", "two", "three", "two", "two", "four", "two", "two"]


# ------------------------------------------------------------------------------------ the data sets


def write_data_sets(cache: Path) -> None:
    """Every public data set in its official files, where the builders look for them."""
    _coco(cache / "coco")
    _flickr30k(cache / "flickr30k")
    _nocaps(cache / "nocaps")
    _visual_genome(cache / "vg")
    _ok_vqa(cache / "okvqa" / "annotations", cache / "coco")
    _gqa(cache / "gqa")
    _web(cache)


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (number * 23 % 256, 80, 160)).save(path)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _captions(number: int, n: int = 5) -> list[str]:
    return [f"A picture of thing {number}, told in way {k}." for k in range(n)]


def _coco_name(subset: str, number: int) -> str:
    return f"{subset}/COCO_{subset}_{number:012d}.jpg"


def _coco(folder: Path) -> None:
    for subset in ("train2014", "val2014", "test2015"):
        for number in range(1, 9):
            picture(folder / "images" / _coco_name(subset, number), number)
    rows = [
        {"caption": caption, "image": _coco_name("train2014", n), "image_id": f"coco_{n}"}
        for n in range(1, 9)
        for caption in _captions(n)
    ]
    _write(folder / "annotations" / "coco_karpathy_train.json", rows)
    for split in ("val", "test"):
        listed = [{"image": _coco_name("val2014", n), "caption": _captions(n)} for n in range(1, 7)]
        _write(folder / "annotations" / f"coco_karpathy_{split}.json", listed)
    for subset in ("train2014", "val2014", "test-dev2015", "test2015"):
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        _write(folder / "annotations" / name, _questions(subset))
    for subset in ("train2014", "val2014"):
        name = f"v2_mscoco_{subset}_annotations.json"
        _write(folder / "annotations" / name, _annotations(subset))


def _questions(subset: str) -> dict[str, Any]:
    """As the VQA server gives them: two questions about each of four pictures."""
    asked = ("How many dogs are there?", "What colour is the table?")
    return {
        "data_type": "mscoco",
        "data_subtype": subset,
        "task_type": "Open-Ended",
        "questions": [
            {"image_id": n, "question": text, "question_id": n * 1000 + k}
            for n in range(1, 5)
            for k, text in enumerate(asked)
        ],
    }


def _annotations(subset: str) -> dict[str, Any]:
    given = [
        {"answer": text, "answer_confidence": "yes", "answer_id": k, "raw_answer": text}
        for k, text in enumerate(ANSWERS, start=1)
    ]
    return {
        "data_type": "mscoco",
        "data_subtype": subset,
        "annotations": [
            {
                "question_id": question["question_id"],
                "image_id": question["image_id"],
                "question_type": "how many",
                "answer_type": "number",
                "multiple_choice_answer": "two",
                "answers": given,
            }
            for question in _questions(subset)["questions"]
        ],
    }


def _flickr30k(folder: Path) -> None:
    for split in ("train", "val", "test"):
        names = [f"flickr30k-images/{split}{n}.jpg" for n in range(1, 7)]
        for n, name in enumerate(names):
            picture(folder / "images" / name, n)
        rows: list[dict[str, Any]] = [
            {"image": name, "caption": _captions(n)} for n, name in enumerate(names)
        ]
        if split == "train":
            rows = [
                {"image": row["image"], "caption": caption, "image_id": n}
                for n, row in enumerate(rows)
                for caption in row["caption"]
            ]
        _write(folder / "annotations" / f"{split}.json", rows)


def _nocaps(folder: Path) -> None:
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {"id": n, "file_name": f"{n:016x}.jpg", "domain": domains[n % 3], "height": 30, "width": 40}
        for n in range(6)
    ]
    for image in images:
        picture(folder / "images" / "val" / image["file_name"], image["id"])
    captions = [
        {"image_id": n, "id": n * 10 + k, "caption": caption}
        for n in range(6)
        for k, caption in enumerate(_captions(n, 10))
    ]
    name = "nocaps_val_4500_captions.json"
    _write(folder / "annotations" / name, {"images": images, "annotations": captions})


def _visual_genome(folder: Path) -> None:
    numbers = range(1, 9)
    for n in numbers:
        picture(folder / "images" / "image" / f"{n}.jpg", n)
    captions = [
        {"image": f"image/{n}.jpg", "caption": f"thing {n} on a table", "image_id": str(n)}
        for n in numbers
    ]
    _write(folder / "annotations" / "vg_caption.json", captions)
    questions = [
        {
            "question_id": 900 + n,
            "question": "Where is the thing?",
            "answer": "on a table",
            "image": f"image/{n}.jpg",
            "dataset": "vg",
        }
        for n in numbers
    ]
    _write(folder / "annotations" / "vg_qa.json", questions)


def _ok_vqa(folder: Path, coco: Path) -> None:
    assert coco.is_dir()  # OK-VQA asks about COCO's pictures
    for subset in ("train2014", "val2014"):
        _write(folder / f"OpenEnded_mscoco_{subset}_questions.json", _questions(subset))
        _write(folder / f"mscoco_{subset}_annotations.json", _annotations(subset))


def _gqa(folder: Path) -> None:
    for n in range(1, 5):
        picture(folder / "images" / f"n{n}.jpg", n)
    types = (("query", "attr"), ("verify", "obj"), ("choose", "rel"), ("logical", "obj"))
    records = {
        f"20{n}": {
            "imageId": f"n{n}",
            "question": "Is there a dog to the left of the table?",
            "answer": "yes",
            "fullAnswer": "Yes, there is a dog.",
            "isBalanced": True,
            "groups": {"global": None, "local": f"{n}-dog"},
            "entailed": [],
            "equivalent": [f"20{n}"],
            "types": {"structural": structural, "semantic": semantic, "detailed": "existTrue"},
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
            "semantic": [{"operation": "select", "dependencies": [], "argument": "dog (1)"}],
        }
        for n, (structural, semantic) in enumerate(types, start=1)
    }
    for split in ("train", "val", "testdev"):
        _write(folder / "annotations" / f"{split}_balanced_questions.json", records)


def _web(cache: Path) -> None:
    """Captions from the web: lists of files, and a shard as img2dataset writes it."""
    lists = (
        ("sbu_captions/images", "sbu_captions/annotations/sbu.json"),
        ("conceptual_caption/images", "conceptual_caption/annotations/cc3m.json"),
        ("conceptual_caption/images_12m", "conceptual_caption/annotations/cc12m.json"),
    )
    for images, listed in lists:
        rows = [{"image": f"{n}.jpg", "caption": f"thing {n} for sale"} for n in range(8)]
        for n, row in enumerate(rows):
            picture(cache / images / row["image"], n)
        _write(cache / listed, rows)
    shard = cache / "laion" / "laion400m" / "part0" / "00000.tar"
    shard.parent.mkdir(parents=True)
    picture(cache / "one.jpg", 3)
    with tarfile.open(shard, "w") as archive:
        for n in range(16):
            caption = f"thing {n}, cheap"
            parts = {
                "jpg": (cache / "one.jpg").read_bytes(),
                "txt": caption.encode(),
                "json": json.dumps({"caption": caption, "status": "success"}).encode(),
            }
            for suffix, content in parts.items():
                member = tarfile.TarInfo(f"{n:09d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


# ------------------------------------------------------------------------ stand-ins for the weights


def write_language_models(folder: Path) -> dict[str, Path]:
    """A decoder-only and an encoder-decoder model, by the arch that speaks through it."""
    return {
        "blip2_opt": save_tiny(folder / "opt", "opt"),
        "blip2_t5": save_tiny(folder / "t5", "t5"),
    }


def stand_ins(cfg: Config, language: dict[str, Path]) -> list[str]:
    """Options that put small random weights in the place of the published ones.

    The image encoder keeps its name, and so its statistics, its dropped block and its patches.
    """
    options = [
        "model.vision.weights=none",
        f"model.vision.image_size={SIZE}",
        "model.vision.options={depth: 3, embed_dim: 32, num_heads: 2}",
        "model.qformer={hidden_size: 32, num_layers: 2, num_heads: 2, init: none}",
        "model.pretrained=null",
        f"model.tokenizer={VOCABULARY}",
        "run.batch_size_train=4",
        "run.batch_size_eval=4",
        "run.num_workers=0",
    ]
    if cfg.model.arch in language:
        options.append(f"model.language.name={language[cfg.model.arch]}")
    for name in cfg.datasets:
        for phase in ("train", "eval"):
            options.append(f"datasets.{name}.vis_processor.{phase}.image_size={SIZE}")
    if hasattr(cfg.run, "java_metrics"):
        options.append("run.java_metrics=false")
    return options
