"""More files of the world, laid out as GQA, OK-VQA, NoCaps and Flickr30k are released."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lavislite.datasets.playground.captions import captions
from lavislite.datasets.playground.facts import annotators, fact_questions
from lavislite.datasets.playground.novelty import domain, references
from lavislite.datasets.playground.scenes import (
    COLOURS,
    SHAPES,
    SIZES,
    SPLITS,
    Scene,
    object_id,
    sample_split,
    scene_graph,
)
from lavislite.datasets.playground.structured import StructuredQuestion, structured_questions

STRUCTURED = {"train": 3, "val": 6, "test": 6}  # questions of GQA's sort about each picture
BALANCED = 3  # of them, at most
FACTS = {"train": 1, "val": 2, "test": 2}  # of OK-VQA's
FLICKR_SEED, FLICKR_ID = 211, 4_000_000  # added to the seed and to the numbers of the pictures
SHIFT = 0.045  # of the image side: how far the grid of such a picture is moved, each way

# OK-VQA names its categories so.
_CATEGORIES = {"fruit": "five", "animal": "eight", "thing": "three", "corners": "nine"}
_CATEGORY_NAMES = {
    "five": "Cooking and Food",
    "eight": "Plants and Animals",
    "three": "Objects, Material and Clothing",
    "nine": "Science and Technology",
}
_CHOICES = {
    "color": COLOURS,
    "size": SIZES,
    "shape": SHAPES,
    "place": ("above", "below", "left", "right"),
    None: ("yes", "no"),
}

Records = dict[str, dict[str, Any]]


# ---- GQA


def gqa_files(scenes: Sequence[Scene], split: str, image_size: int) -> dict[str, Any]:
    """File name -> content: all questions, the balanced ones, choices and scene graphs.

    Training has balanced questions only, as nobody is scored on the others.
    """
    everything: Records = {}
    choices: dict[str, dict[str, list[str]]] = {}
    balance = _Balance()
    for scene in scenes:
        stream = random.Random(f"{scene.seed}/structured")
        asked = structured_questions(scene, stream, STRUCTURED[split])
        ids = [f"{scene.image_id}{k:02d}" for k in range(len(asked))]
        taken = 0
        for k, question in enumerate(asked):
            record = gqa_record(scene, split, question, k, asked, ids)
            record["isBalanced"] = taken < BALANCED and balance.takes(question)
            taken += record["isBalanced"]
            everything[ids[k]] = record
            valid = list(_CHOICES[question.group])
            plausible = question.text.rstrip("?").replace(",", "").split()
            offered = [word for word in valid if word in plausible]
            choices[ids[k]] = {"valid": valid, "plausible": offered if len(offered) > 1 else valid}
    balanced = {key: record for key, record in everything.items() if record["isBalanced"]}
    files: dict[str, Any] = {f"gqa_{split}_balanced_questions.json": balanced}
    if split != "train":
        graphs = {gqa_image(s, split): scene_graph(s, image_size) for s in scenes}
        files[f"gqa_{split}_all_questions.json"] = everything
        files[f"gqa_{split}_choices.json"] = choices
        files[f"gqa_{split}_sceneGraphs.json"] = graphs
    return files


def gqa_image(scene: Scene, split: str) -> str:
    """The name of the scene's picture, without its ending, as GQA's `imageId`."""
    return f"playground_{split}_{scene.image_id:012d}"


def gqa_record(
    scene: Scene,
    split: str,
    question: StructuredQuestion,
    k: int,
    asked: Sequence[StructuredQuestion],
    ids: Sequence[str],
) -> dict[str, Any]:
    """Question number `k` of those `asked` about the scene, with GQA's keys."""
    entailed = [other for other in range(len(asked)) if question.entails(asked[other])]
    equal = [other for other in entailed if asked[other].entails(question)]
    steps = [
        {"operation": operation, "dependencies": list(needs), "argument": argument}
        for operation, needs, argument in question.program
    ]
    pointers = [(words, object_id(scene, place)) for words, place in question.mentions]
    last = question.full.rstrip(".")
    named = _pointers(question.answer, pointers) if question.semantic in ("rel", "attr") else {}
    return {
        "imageId": gqa_image(scene, split),
        "question": question.text,
        "answer": question.answer,
        "fullAnswer": question.full,
        "isBalanced": True,
        "groups": {
            "global": question.group,
            "local": f"{question.detailed}-{question.mentions[0][0] if pointers else 'scene'}",
        },
        "entailed": [ids[other] for other in entailed if other != k],
        "equivalent": sorted({ids[k], *(ids[other] for other in equal)}),
        "types": {
            "structural": question.structural,
            "semantic": question.semantic,
            "detailed": question.detailed,
        },
        "annotations": {
            "question": _pointers(question.text.rstrip("?"), pointers),
            "answer": named,
            "fullAnswer": _pointers(last, pointers),
        },
        "semantic": steps,
        "semanticStr": "->".join(_step(step) for step in steps),
    }


def _step(step: Mapping[str, Any]) -> str:
    after = f" {step['dependencies']}" if step["dependencies"] else ""
    return f"{step['operation']}: {step['argument']}{after}"


def _pointers(text: str, pointers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Where the words that name objects stand in `text`: "3", or "3:5" for words 3 and 4."""
    words = text.lower().replace(",", "").split()
    found: dict[str, str] = {}
    for name, object_ in pointers:
        parts = name.split()
        for start in range(len(words) - len(parts) + 1):
            if words[start : start + len(parts)] == parts:
                end = "" if len(parts) == 1 else f":{start + len(parts)}"
                found.setdefault(f"{start}{end}", object_)
                break
    return found


class _Balance:
    """Takes a question unless its answer is already more frequent than its rivals."""

    def __init__(self) -> None:
        self.seen: defaultdict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)

    def takes(self, question: StructuredQuestion) -> bool:
        counts = self.seen[question.detailed, question.group]
        least = min(counts[answer] for answer in _CHOICES[question.group])
        if counts[question.answer] > 1.25 * least + 1:
            return False
        counts[question.answer] += 1
        return True


# ---- OK-VQA


def okvqa_files(scenes: Sequence[Scene], split: str, version: int) -> dict[str, Any]:
    """File name -> content: questions and annotations, as the VQA server has them."""
    asked, answered = [], []
    for scene in scenes:
        stream = random.Random(f"{scene.seed}/facts")
        for k, question in enumerate(fact_questions(scene, stream, FACTS[split])):
            ids = {"image_id": scene.image_id, "question_id": scene.image_id * 10 + k}
            asked.append({**ids, "question": question.text})
            given = [
                {"answer_id": n, "raw_answer": raw, "answer_confidence": "yes", "answer": raw}
                for n, raw in enumerate(annotators(question, stream), start=1)
            ]
            answered.append(
                {
                    **ids,
                    "question_type": _CATEGORIES[question.kind],
                    "answer_type": "other",
                    "confidence": 3,
                    "answers": given,
                }
            )
    head = {
        "info": {"description": "lavislite playground", "version": str(version)},
        "license": {},
        "data_type": "playground",
        "data_subtype": split,
    }
    return {
        f"okvqa_questions_{split}.json": {**head, "task_type": "Open-Ended", "questions": asked},
        f"okvqa_answers_{split}.json": {
            **head,
            "question_types": _CATEGORY_NAMES,
            "annotations": answered,
        },
    }


# ---- NoCaps


def nocaps_file(scenes: Sequence[Scene], image_size: int, version: int) -> dict[str, Any]:
    """The pictures with their domain, and ten captions each."""
    images = [
        {
            "id": scene.image_id,
            "open_images_id": f"{scene.image_id:016x}",
            "height": image_size,
            "width": image_size,
            "file_name": nocaps_image(scene),
            "license": 0,
            "domain": domain(scene),
        }
        for scene in scenes
    ]
    annotations = [
        {"image_id": scene.image_id, "id": scene.image_id * 10 + k, "caption": text}
        for scene in scenes
        for k, text in enumerate(references(scene))
    ]
    info = {"description": "lavislite playground", "version": str(version)}
    return {"licenses": [], "info": info, "images": images, "annotations": annotations}


def nocaps_image(scene: Scene) -> str:
    return f"playground_nocaps_{scene.image_id:012d}.jpg"


# ---- Flickr30k


def flickr_scenes(counts: Mapping[str, int], seed: int) -> dict[str, list[Scene]]:
    """Scenes of each split whose grid is moved a little; no picture is another split's."""
    found = {}
    for split in SPLITS:
        scenes = sample_split(split, counts[split], seed + FLICKR_SEED)
        found[split] = [_moved(scene) for scene in scenes]
    return found


def _moved(scene: Scene) -> Scene:
    stream = random.Random(f"{scene.seed}/moved")
    # In steps of the grid that all places are on, see `scenes`.
    dx, dy = (round(stream.uniform(-SHIFT, SHIFT) * 128) / 128 for _ in range(2))
    moved = tuple(replace(thing, x=thing.x + dx, y=thing.y + dy) for thing in scene.objects)
    return replace(scene, image_id=scene.image_id + FLICKR_ID, objects=moved)


def flickr_files(scenes: Mapping[str, Sequence[Scene]]) -> dict[str, Any]:
    """Karpathy's file with the splits, and the original file of captions."""
    images: list[dict[str, Any]] = []
    lines: list[str] = []
    for split, members in scenes.items():
        for scene in members:
            sentences: list[dict[str, Any]] = []
            for text in captions(scene):
                number, sentence = len(lines), f"{text[0].upper()}{text[1:]} ."
                lines.append(f"{flickr_image(scene)}#{len(sentences)}\t{sentence}")
                tokens = text.replace(",", "").split()
                row = {"tokens": tokens, "raw": sentence, "imgid": len(images), "sentid": number}
                sentences.append(row)
            image = {
                "sentids": [row["sentid"] for row in sentences],
                "imgid": len(images),
                "sentences": sentences,
                "split": split,
                "filename": flickr_image(scene),
            }
            images.append(image)
    return {
        "dataset_flickr30k.json": {"images": images, "dataset": "flickr30k"},
        "results_20130124.token": "\n".join(lines) + "\n",
    }


def flickr_image(scene: Scene) -> str:
    return f"{scene.image_id}.jpg"
