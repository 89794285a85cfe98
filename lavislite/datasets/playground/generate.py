"""Writes the world to disk, in the layouts of the real datasets, once per configuration.

<cache>/playground/world/<fingerprint>/
  images/<split>/playground_<split>_<12 digits>.jpg; images/nocaps, images/flickr30k
  annotations/captions_<split>.json      COCO captions: info, images, annotations
  annotations/karpathy_<split>.json      LAVIS's files for COCO captions and retrieval
  annotations/familiar_<split>.json      the same, without the pictures that show a held-out pair
  annotations/questions_<split>.json     VQAv2 questions
  annotations/answers_<split>.json       VQAv2 annotations: ten answers each
  annotations/scenes_<split>.json        scene graphs in GQA's layout, and a full description
  annotations/gqa_<split>_*.json         GQA's questions, choices and scene graphs
  annotations/okvqa_*_<split>.json       OK-VQA's questions and annotations
  annotations/nocaps_test.json           NoCaps's file, with domains; scenes_nocaps.json beside it
  annotations/dataset_flickr30k.json     Karpathy's file; results_20130124.token beside it
  world.json                             what made it
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from lavislite.common.io import atomic_write, cache_dir, file_lock
from lavislite.datasets.playground.captions import captions, full_caption
from lavislite.datasets.playground.novelty import DOMAINS, domain, novel_scenes
from lavislite.datasets.playground.official import (
    flickr_files,
    flickr_image,
    flickr_scenes,
    gqa_files,
    nocaps_file,
    nocaps_image,
    okvqa_files,
)
from lavislite.datasets.playground.questions import Question, annotators, questions
from lavislite.datasets.playground.render import BUSY, PLAIN, Look, render
from lavislite.datasets.playground.scenes import (
    SPLITS,
    VOCABULARY,
    Scene,
    sample_split,
    scene_graph,
)

VERSION = 3  # raise when scenes, drawing, captions or layout change: old caches are then left alone
JPEG_QUALITY = 92
QUESTIONS = {"train": 3, "val": 4, "test": 4}  # about each picture


@dataclass(frozen=True)
class WorldSpec:
    """Everything the files on disk depend on."""

    seed: int = 0
    num_train: int = 12_000
    num_val: int = 200
    num_test: int = 500
    num_nocaps: int = 450
    num_flickr30k: int = 1_000
    image_size: int = 64

    @property
    def fingerprint(self) -> str:
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def folder(self) -> Path:
        return cache_dir() / "playground" / "world" / self.fingerprint

    def count(self, split: str) -> int:
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}[split]

    @property
    def flickr_counts(self) -> dict[str, int]:
        """Of `num_flickr30k` in the test gallery, as many for training, a fifth to validate."""
        full = self.num_flickr30k
        return {"train": full, "val": max(full // 5, 1), "test": full}


def ensure_world(spec: WorldSpec, progress: bool = True) -> Path:
    """The folder of the world `spec` describes, generated when it is not there yet.

    Safe under several processes: one writes, the others wait; a broken run leaves nothing behind.
    """
    folder = spec.folder
    if not folder.is_dir():
        with file_lock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                atomic_write(folder, lambda draft: write_world(spec, draft, progress))
    return folder


def write_world(spec: WorldSpec, folder: Path, progress: bool = False) -> None:
    """Writes all splits below the new folder `folder`.

    Equal specs give equal annotations, to the byte.
    """
    notes = folder / "annotations"
    notes.mkdir(parents=True)
    others = flickr_scenes(spec.flickr_counts, spec.seed)
    total = sum(map(spec.count, SPLITS)) + spec.num_nocaps + sum(map(len, others.values()))
    title = "drawing the playground"
    with tqdm(total=total, desc=title, unit="img", mininterval=0.5, disable=not progress) as bar:

        def draw(scenes: Iterable[Scene], name: Callable[[Scene], str], look: Look = PLAIN) -> None:
            for scene in scenes:
                path = folder / "images" / name(scene)
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(render(scene, spec.image_size, look))
                picture.save(path, quality=JPEG_QUALITY)
                bar.update()

        for split in SPLITS:
            scenes = sample_split(split, spec.count(split), spec.seed)
            _write_annotations(scenes, split, spec.image_size, notes)
            draw(scenes, partial(file_name, split=split))
        novel = novel_scenes(spec.num_nocaps, spec.seed)
        _write_json(notes / "nocaps_test.json", nocaps_file(novel, spec.image_size, VERSION))
        _write_json(notes / "scenes_nocaps.json", _graphs(novel, nocaps_image, spec.image_size))
        draw(novel, lambda scene: f"nocaps/{nocaps_image(scene)}")
        for name, content in flickr_files(others).items():
            _write(notes / name, content)
        for scenes in others.values():
            draw(scenes, lambda scene: f"flickr30k/{flickr_image(scene)}", BUSY)
    world = {"version": VERSION, **asdict(spec), "vocabulary": VOCABULARY}
    _write_json(folder / "world.json", world)


def file_name(scene: Scene, split: str) -> str:
    return f"{split}/playground_{split}_{scene.image_id:012d}.jpg"


def _write_annotations(scenes: list[Scene], split: str, image_size: int, folder: Path) -> None:
    texts = {scene.image_id: captions(scene) for scene in scenes}
    names = {scene.image_id: file_name(scene, split) for scene in scenes}
    _write_json(folder / f"captions_{split}.json", _coco(texts, names, image_size))
    _write_json(folder / f"karpathy_{split}.json", _karpathy(texts, names, split))
    familiar = {s.image_id: texts[s.image_id] for s in scenes if domain(s) == DOMAINS[0]}
    _write_json(folder / f"familiar_{split}.json", _karpathy(familiar, names, split))
    name = partial(file_name, split=split)
    _write_json(folder / f"scenes_{split}.json", _graphs(scenes, name, image_size))
    asked, answered = _vqa(scenes, split)
    _write_json(folder / f"questions_{split}.json", asked)
    _write_json(folder / f"answers_{split}.json", answered)
    more = {**gqa_files(scenes, split, image_size), **okvqa_files(scenes, split, VERSION)}
    for file, content in more.items():
        _write_json(folder / file, content)


def _graphs(
    scenes: Iterable[Scene], name: Callable[[Scene], str], image_size: int
) -> dict[str, Any]:
    """The scene graphs by image id, with the picture's file and a full description of it."""
    graphs = {}
    for scene in scenes:
        told = full_caption(scene, random.Random(f"{scene.seed}/description"))
        graph = scene_graph(scene, image_size)
        graphs[str(scene.image_id)] = {**graph, "file_name": name(scene), "description": told}
    return graphs


def _vqa(scenes: list[Scene], split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Questions and annotations, as the VQA server has them."""
    asked, answered = [], []
    for scene in scenes:
        stream = random.Random(f"{scene.seed}/questions")
        for k, question in enumerate(questions(scene, stream, QUESTIONS[split])):
            ids = {"image_id": scene.image_id, "question_id": scene.image_id * 10 + k}
            asked.append({**ids, "question": question.text})
            answered.append({**ids, **_answers(question, stream)})
    head = {
        "info": {"description": "lavislite playground", "version": str(VERSION)},
        "license": {},
        "data_type": "playground",
        "data_subtype": split,
    }
    return (
        {**head, "task_type": "Open-Ended", "questions": asked},
        {**head, "annotations": answered},
    )


def _answers(question: Question, stream: random.Random) -> dict[str, Any]:
    given = [
        {"answer_id": number, "answer": answer, "answer_confidence": "yes"}
        for number, answer in enumerate(annotators(question, stream), start=1)
    ]
    return {
        "question_type": question.kind,
        "answer_type": question.answer_type,
        "multiple_choice_answer": question.answer,
        "answers": given,
    }


def _coco(texts: dict[int, list[str]], names: dict[int, str], image_size: int) -> dict[str, Any]:
    images = [
        {"id": image_id, "file_name": name, "height": image_size, "width": image_size}
        for image_id, name in names.items()
    ]
    annotations = [
        {"image_id": image_id, "id": image_id * 10 + k, "caption": text}
        for image_id, lines in texts.items()
        for k, text in enumerate(lines)
    ]
    info = {"description": "lavislite playground", "version": str(VERSION)}
    return {"info": info, "images": images, "licenses": [], "annotations": annotations}


def _karpathy(
    texts: dict[int, list[str]], names: dict[int, str], split: str
) -> list[dict[str, Any]]:
    """One row per caption for training, one row per image with all its captions otherwise."""
    if split != "train":
        return [{"image": names[key], "caption": lines} for key, lines in texts.items()]
    return [
        {"caption": text, "image": names[key], "image_id": f"playground_{key}"}
        for key, lines in texts.items()
        for text in lines
    ]


def _write(path: Path, content: Any) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        _write_json(path, content)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
