"""Questions about the playground's scenes, documents about them, and how captions are judged."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from lavislite.common.errors import ConfigError
from lavislite.datasets.playground import PlaygroundVQABuilder, PlaygroundVQAConfig
from lavislite.datasets.playground.captions import captions, full_caption
from lavislite.datasets.playground.documents import document
from lavislite.datasets.playground.questions import Question, annotators, questions
from lavislite.datasets.playground.scenes import Scene, SceneObject, sample_split, scene_graph
from lavislite.datasets.playground.text import PlaygroundTextBuilder, PlaygroundTextConfig
from lavislite.datasets.playground.truth import Named, named_objects, score_captions
from lavislite.metrics.vqa import vqa_accuracy


def thing(colour: str, shape: str, position: str, size: str = "large") -> SceneObject:
    return SceneObject(shape, colour, size, "plain", position, 0.5, 0.5, 0.1)


SCENE = Scene(7, "a", (thing("red", "circle", "top left"), thing("blue", "star", "right", "small")))
TRUE = {
    "what color is the circle?": "red",
    "what color is the star?": "blue",
    "what shape is the red object?": "circle",
    "what shape is the blue object?": "star",
    "what shape is at the top left?": "circle",
    "what shape is at the right?": "star",
    "what size is the circle?": "large",
    "what size is the star?": "small",
    "where is the circle?": "top left",
    "where is the star?": "right",
    "how many objects are there?": "2",
    "how many shapes are there?": "2",
    "is there a red circle?": "yes",
    "is there a blue circle?": "no",
    "is there a red star?": "no",
    "is the circle striped?": "no",
    "is the star striped?": "no",
    "is the circle to the left of the star?": "yes",
    "is the star to the left of the circle?": "no",
    "is the circle above the star?": "yes",
    "is the circle below the star?": "no",
}


def test_answers_are_true() -> None:
    asked = {q.text: q.answer for q in questions(SCENE, random.Random(0), 60)}
    known = asked.keys() & TRUE.keys()
    assert len(known) > 15
    assert {text: asked[text] for text in known} == {text: TRUE[text] for text in known}


def test_no_question_is_ambiguous() -> None:
    twins = Scene(0, "b", (thing("red", "circle", "top"), thing("red", "circle", "left")))
    asked = {q.kind for q in questions(twins, random.Random(0), 40)}
    assert asked <= {"shape at", "how many", "is there"}


def test_annotators_mostly_agree_so_that_the_expected_answer_scores() -> None:
    stream = random.Random(0)
    given = [annotators(Question("?", "large", "size"), stream) for _ in range(200)]
    assert all(len(answers) == 10 for answers in given)
    assert 0.9 < sum(answers.count("large") for answers in given) / 2000 < 0.98
    assert any("big" in answers for answers in given)
    assert all(vqa_accuracy("large", answers) == 1.0 for answers in given)


def test_a_full_caption_leaves_nothing_out() -> None:
    for scene in sample_split("val", 60, seed=0):
        told = named_objects(full_caption(scene, random.Random(1)))
        assert Counter((n.colour, n.shape, n.position) for n in told) == Counter(
            (o.colour, o.shape, o.position) for o in scene.objects
        )


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("a large red circle at the top left", [Named("red", "circle", "top left")]),
        ("the small blue star is in the middle", [Named("blue", "star", "center")]),
        (
            "at the top there is a big red circle, on the left a blue star",
            [Named("red", "circle", "top"), Named("blue", "star", "left")],
        ),
        (
            "a red circle to the left of a blue star",
            [Named("red", "circle", None), Named("blue", "star", None)],
        ),
        ("three objects, red circle top left", [Named("red", "circle", "top left")]),
        ("a circle, red", []),
        ("", []),
    ],
)
def test_objects_are_read_off_captions(caption: str, named: list[Named]) -> None:
    assert named_objects(caption) == named


def test_true_captions_score_full_marks_and_false_ones_do_not() -> None:
    scenes = sample_split("val", 40, seed=0)
    graphs = {str(k): scene_graph(scene, 64) for k, scene in enumerate(scenes)}
    for i in range(5):
        true = score_captions({str(k): captions(s)[i] for k, s in enumerate(scenes)}, graphs)
        assert true["objects_true"] == true["objects_true_with_position"] == 100.0
    wrong = score_captions({"0": "a red circle"}, {"0": scene_graph(SCENE, 64)})
    assert wrong == {
        "objects_true": 100.0,
        "objects_true_with_position": 0.0,
        "objects_found": 50.0,
    }
    said = {"0": "a blue circle top left and a blue star right"}
    half = score_captions(said, {"0": scene_graph(SCENE, 64)})
    assert half["objects_true"] == half["objects_true_with_position"] == 50.0


def test_documents_describe_one_scene_twice_and_repeat_themselves() -> None:
    first, again = document(SCENE), document(SCENE)
    assert first == again
    assert first.caption in captions(SCENE)
    assert 6 <= len(first.questions) <= 8  # five as VQA asks, two as GQA does, one about a fact
    kinds = {question.kind for question in first.questions}
    assert kinds & {"fruit", "animal", "thing", "corners"}


def test_the_text_dataset_has_the_scenes_of_its_split_and_all_words() -> None:
    cfg = PlaygroundTextConfig(num_train=30, num_val=5)
    builder = PlaygroundTextBuilder(cfg, name="playground_text")
    train, val = (builder.build(split, train=split == "train") for split in ("train", "val"))
    assert (len(train), len(val)) == (32, 5)  # two tell facts
    batch = val.collate([val[0], val[1]])
    assert len(batch["questions"]) == 2
    assert len(batch["questions"][0]) == len(batch["answers"][0]) >= 6
    assert any("Answer:" in text for text in train.captions())
    with pytest.raises(ConfigError, match="no split 'vall'.*Did you mean 'val'"):
        builder.build("vall", train=False)


def test_questions_on_disk_are_vqa_files_with_descriptions(tmp_path) -> None:
    cfg = PlaygroundVQAConfig(num_train=6, num_val=4, num_test=2, num_nocaps=3, num_flickr30k=2)
    builder = PlaygroundVQABuilder(cfg, name="playground_vqa")
    builder.prepare()
    dataset = builder.build("val", train=False)
    assert len(dataset) == 16
    content = json.loads(builder.file("questions_val.json").read_text())
    assert {"info", "license", "task_type", "data_type", "data_subtype"} <= content.keys()
    row = dataset.annotation(0)
    assert len(row["answers"]) == 10
    assert row["answer_type"] in ("yes/no", "number", "other")
    described = dataset.true_caption(0)
    graph = builder.graphs("val")[0]
    assert described == graph["description"]
    assert row["image"].endswith(graph["file_name"])
    train = builder.build("train", train=True)[0]
    assert train["text_output"] in train["answers"]
