"""What a file that does not belong here is, and who reads it: for messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_Test = Callable[[Mapping[str, Any]], bool]


def looks_like(content: Any) -> str:
    """What `content` (of a file, or one of its records) looks like, as a sentence; "" if unknown.

    The sentence begins with a space: it is appended to one that says what is wrong.
    """
    if isinstance(content, list):
        content = content[0] if content else None
    if not isinstance(content, Mapping):
        return ""
    for test, what in _KINDS:
        if test(content):
            return f" It looks like {what}."
    values = list(content.values())[:1]
    return looks_like(values[0]) if values and isinstance(values[0], Mapping) else ""


def is_nocaps(content: Any) -> bool:
    """Whether a COCO-like object is NoCaps's."""
    first = _first(content, "images") if isinstance(content, Mapping) else {}
    return "open_images_id" in first or "/nocaps/" in str(first.get("coco_url"))


def _first(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    entries = content.get(key)
    first = entries[0] if isinstance(entries, list) and entries else None
    return first if isinstance(first, Mapping) else {}


def _has(*keys: str) -> _Test:
    return lambda content: set(keys) <= content.keys()


def _in(field: str, *keys: str) -> _Test:
    return lambda content: set(keys) <= _first(content, field).keys()


# The first that holds is named, so what is particular comes before what is common.
_KINDS: tuple[tuple[_Test, str], ...] = (
    (is_nocaps, "NoCaps; `builder: nocaps` reads it"),
    (
        _in("questions", "question_id"),
        "the questions of VQAv2 or OK-VQA; `builder: coco_vqa` or `ok_vqa` reads them",
    ),
    (
        _in("annotations", "question_id"),
        "the answers of VQAv2 or OK-VQA; `builder: coco_vqa` or `ok_vqa` reads them",
    ),
    (
        lambda c: "bbox" in _first(c, "annotations") or "segmentation" in _first(c, "annotations"),
        "COCO's objects (instances or keypoints); its captions are in captions_train2014.json and "
        "captions_val2014.json",
    ),
    (
        lambda c: (
            "caption" in _first(c, "annotations")
            and bool(_first(c, "images"))
            and "file_name" not in _first(c, "images")
        ),
        "the references that LAVIS scores captions with (coco_karpathy_val_gt.json), which name no "
        "files. They are not needed: give coco_karpathy_val.json, which holds the same captions",
    ),
    (
        lambda c: "file_name" in _first(c, "images") and not c.get("annotations"),
        "a list of COCO's pictures without captions",
    ),
    (_has("image_urls", "captions"), "SBU; `builder: sbu_caption` reads it"),
    (
        lambda c: "regions" in c and not c.get("regions"),
        "Visual Genome's region descriptions; `builder: vg_caption` reads them",
    ),
    (_in("regions", "phrase"), "Visual Genome's regions; `builder: vg_caption` reads them"),
    (_has("qas"), "Visual Genome's questions; `builder: vg_vqa` reads them"),
    (_has("imageId", "question"), "GQA; `builder: gqa` reads it"),
    (_has("question", "fullAnswer"), "GQA; `builder: gqa` reads it"),
    (
        lambda c: "question" in c and ("choices" in c or "direct_answers" in c),
        "A-OKVQA; `builder: aok_vqa` reads it",
    ),
    (
        lambda c: "question" in c and c.get("dataset") == "vg",
        "Visual Genome's questions; `builder: vg_vqa` reads them",
    ),
    (
        _has("question"),
        "questions; `builder: image_vqa` reads yours, coco_vqa VQAv2's, vg_vqa, ok_vqa, aok_vqa "
        "and gqa those of the data sets of that name",
    ),
    (_has("objects", "width", "height"), "GQA's scene graphs, which go with `builder: gqa`"),
    (
        lambda c: "img_id" in c and "caption" not in c,
        "LAVIS's list of NoCaps; `builder: nocaps` reads it",
    ),
    (
        lambda c: {"url", "caption"} <= c.keys() and "image" not in c,
        "a list of pictures on the web; `builder: conceptual_caption_3m` reads it once the "
        "pictures are downloaded",
    ),
    (
        lambda c: isinstance(c.get("caption"), str) and "video" in c,
        "captions of videos, which are not supported",
    ),
)
