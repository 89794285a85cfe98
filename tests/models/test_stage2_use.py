"""What a stage-2 model does, and what it says to those who ask for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lavislite.common import distributed
from lavislite.common.errors import ConfigError, UserError
from lavislite.models.blip2.samples import pictures, split_text
from lavislite.models.blip2.stage2 import Blip2LLM, Blip2LLMConfig

from .reference import tiny_config, tiny_eva
from .reference_stage2 import KINDS, language_config, reference_stage2, stage2_tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Blip2LLM]:
    folder = tmp_path_factory.mktemp("language")
    return {kind: reference_stage2(kind, folder) for kind in KINDS}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, models: dict[str, Blip2LLM]) -> Blip2LLM:
    found = models[request.param].eval()
    found.cfg.prompt = ""
    return found


@pytest.fixture
def opt(models: dict[str, Blip2LLM]) -> Blip2LLM:
    models["opt"].cfg.prompt = ""
    return models["opt"].eval()


IMAGE = stage2_tensors("opt", "generate_tensors")["image"]
SHORT = {"num_beams": 2, "max_new_tokens": 4}


# ---- writing


def test_a_batch_writes_what_its_samples_write_alone(model: Blip2LLM) -> None:
    prompts = ["a photo of", "Question: what is the old man eating? Answer:", "", "a"]
    together = model.generate({"image": IMAGE, "prompt": prompts}, num_captions=2, **SHORT)
    assert len(together) == 8
    for i, prompt in enumerate(prompts):
        alone = model.generate({"image": IMAGE[i : i + 1]}, num_captions=2, prompt=prompt, **SHORT)
        assert alone == together[2 * i : 2 * i + 2]


def test_several_pictures_per_sample(model: Blip2LLM) -> None:
    even, mask = model.image_prefix(IMAGE.unflatten(0, (2, 2)))
    assert even.shape == (2, 16, 64)
    assert mask.all()
    uneven, mask = model.image_prefix([IMAGE[:1], IMAGE[1:4]])
    assert uneven.shape == (2, 24, 64)
    assert mask.sum(1).tolist() == [8, 24]
    single, _ = model.image_prefix(IMAGE)
    torch.testing.assert_close(uneven[1], single[1:].flatten(0, 1))
    texts = model.generate({"image": [IMAGE[:1], IMAGE[1:4]], "prompt": "a photo of"}, **SHORT)
    assert texts[:1] == model.generate({"image": IMAGE[:1], "prompt": "a photo of"}, **SHORT)
    assert texts[1:] == model.generate({"image": IMAGE[None, 1:], "prompt": "a photo of"}, **SHORT)


def test_without_a_picture_the_language_model_goes_on_alone(model: Blip2LLM) -> None:
    texts = model.generate({"prompt": ["a photo of", "a"]}, **SHORT)
    assert texts[:1] == model.generate({"prompt": "a photo of"}, **SHORT)
    answers = model.predict_answers({"text_input": ["a", "b", "c"]}, num_beams=1, max_len=3)
    assert len(answers) == 3


def test_sampling_follows_the_seed(model: Blip2LLM) -> None:
    def draw() -> list[str]:
        torch.manual_seed(1)
        return model.generate({"image": IMAGE}, use_nucleus_sampling=True, num_captions=3)

    assert draw() == draw()
    assert len(draw()) == 12


def test_ranking_finds_the_likeliest_answer(model: Blip2LLM) -> None:
    answers = ["red", "two dogs", "an old man eating pizza", "no"]
    samples = {"image": IMAGE, "text_input": ["what is it"] * 4}
    form = "Question: {} Short answer:"
    ranked = model.predict_answers(
        samples, inference_method="rank", answer_list=answers, prompt=form, num_ans_candidates=3
    )
    prefix, _ = model.image_prefix(IMAGE)
    asked = ["Question: what is it Short answer:"] * 4
    with torch.no_grad():
        scores = torch.stack([model.language.nll(prefix, asked, [a] * 4).total for a in answers], 1)
    assert ranked == [answers[i] for i in scores.argmin(1).tolist()]


def test_the_question_goes_into_the_models_own_prompt(model: Blip2LLM) -> None:
    samples = {"image": IMAGE[:2], "text_input": ["is it red", "is it two"]}
    given = model.predict_answers(samples, prompt="Question: {} Short answer:", max_len=4)
    model.cfg.prompt = "Question: {} Short answer:"
    assert model.predict_answers(samples, max_len=4) == given
    # and training reads what answering will read
    texts = model.reader.texts({**samples, "text_output": ["yes", "no"]}, 2, at_random=False)
    assert texts.prompts[0] == "Question: is it red Short answer:"
    assert texts.targets == ["yes", "no"]


def test_a_conversation_is_one_prompt(model: Blip2LLM) -> None:
    messages = [
        {"role": "user", "content": "what is it"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "which color"},
    ]
    prompt = "Question: what is it Answer: a cat Question: which color Answer:"
    written = model.generate({"image": IMAGE, "prompt": prompt}, **SHORT)
    assert model.chat({"image": IMAGE}, messages, **SHORT) == written


# ---- training


def test_a_caption_that_begins_with_the_prompt_is_the_caption_after_it(model: Blip2LLM) -> None:
    model.cfg.prompt = "a photo of "
    captions = ["two happy dogs", "a red cat", "an old man", "a bus"]
    plain = model({"image": IMAGE, "text_input": captions})["loss"]
    begun = model({"image": IMAGE, "text_input": [f"a photo of {c}" for c in captions]})["loss"]
    assert torch.equal(plain, begun)
    asked = {"image": IMAGE, "text_input": captions, "prompt": "a photo of "}
    model.cfg.prompt = ""
    assert torch.equal(model(asked)["loss"], plain)


def test_an_encoder_reads_the_first_words_of_a_caption(models: dict[str, Blip2LLM]) -> None:
    assert split_text("a red cat sits", at_random=False) == ("a red", "cat sits")
    assert split_text("cat", at_random=True) == ("", "cat")
    torch.manual_seed(0)
    drawn = {split_text("a red cat", at_random=True) for _ in range(50)}
    assert drawn == {("", "a red cat"), ("a", "red cat"), ("a red", "cat")}
    t5 = models["t5"]
    t5.cfg.prompt = ""
    texts = t5.reader.texts({"text_input": ["a red cat sits"]}, 1, at_random=False)
    assert (texts.prompts, texts.targets) == (["a red"], ["cat sits"])


def test_gradients_reach_the_bridge_and_nothing_else(model: Blip2LLM) -> None:
    model.train()
    model.zero_grad()
    assert not model.language.model.training
    assert not model.visual_encoder.training
    model({"image": IMAGE, "text_input": ["a cat sits here"] * 4})["loss"].backward()
    moved = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert moved == {"query_tokens", "ln_vision", "Qformer", "llm_proj"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_processes_with_captions_of_different_length_are_one(
    opt: Blip2LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over the processes is the loss of the whole batch: per token, not per process."""
    opt.train()
    samples = {"image": IMAGE, "text_input": ["a", "a red cat", "two happy dogs near it", "bus"]}
    whole = opt(samples)["loss"]
    halves = [{key: value[part] for key, value in samples.items()} for part in (_LEFT, _RIGHT)]
    counts: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda x: counts.append(x) or x)
    for half in halves:
        opt(half)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda _: counts[0] + counts[1])
    torch.testing.assert_close((opt(halves[0])["loss"] + opt(halves[1])["loss"]) / 2, whole)


_LEFT, _RIGHT = slice(0, 2), slice(2, 4)


# ---- what is refused


BAD_IMAGES = [
    ([], r"image: the list is empty"),
    (IMAGE[:0], r"there is none in a tensor of shape \[0, 3, 56, 56\]"),
    (IMAGE[0], r"expected \[B, 3, H, W\].* got \[3, 56, 56\]. A single .*unsqueeze"),
    (IMAGE[:, :1], r"got \[4, 1, 56, 56\]"),
    ([IMAGE[0], IMAGE[:0]], r"image\[1\]: expected .* got \[0, 3, 56, 56\]"),
    ([IMAGE[0], IMAGE[0, :, :28]], r"image\[1\] is \[28, 56\] pixels, image\[0\] \[56, 56\]"),
    (["cat.jpg"], r"image\[0\]: expected a tensor, got str.*vis_processors"),
    ("cat.jpg", r"image: expected a tensor, got str"),
    ((IMAGE * 60).to(torch.uint8), r"expected normalised floats, got torch.uint8.*vis_processors"),
    (IMAGE.sigmoid() * 255, r"expected normalised values around zero, got .* to 2"),
    (IMAGE * float("nan"), r"expected normalised values around zero, got nan to nan"),
    (IMAGE.repeat(1, 1, 2, 2), r"built for 224 pixels and cannot read 112 x 112"),
]


@pytest.mark.parametrize(("image", "message"), BAD_IMAGES)
def test_pictures_that_cannot_be_read(opt: Blip2LLM, image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opt.generate({"image": image}, **SHORT)


def test_training_does_not_wait_for_the_values_of_a_picture() -> None:
    assert pictures({"image": IMAGE * 1000}, check_values=False).counts == [1, 1, 1, 1]


BAD_CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("generate", {"samples": {"image": IMAGE, "prompt": []}}, r"prompt: the list is empty"),
    ("generate", {"samples": {"image": IMAGE, "prompt": ["a", "b"]}}, r"got 2 for 4 samples"),
    (
        "generate",
        {"samples": {"image": IMAGE, "prompt": 3}},
        r"prompt: expected a string or a",
    ),
    ("generate", {"samples": {"image": IMAGE}, "num_captions": 6}, r"generate.num_captions: 6 cap"),
    ("generate", {"samples": {"image": IMAGE}, "max_new_tokens": 0}, r"generate.max_new_tokens"),
    ("predict_answers", {"samples": {"image": IMAGE}}, r"needs samples\['text_input'\]; got"),
    (
        "predict_answers",
        {"samples": {"image": IMAGE, "text_input": ["a"]}},
        r"got 1 for 4 samples",
    ),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "inference_method": "rang"},
        r"got 'rang'. Did you mean 'rank'",
    ),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "inference_method": "rank"},
        r"needs a list of answers",
    ),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "tempreature": 1.0},
        r"unknown option 'tempreature'. Did you mean 'temperature'",
    ),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "max_new_tokens": 3},
        r"predict_answers: unknown option 'max_new_tokens'. Did you mean 'max_len'",
    ),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "num_captions": 2},
        r"unknown option 'num_captions'",
    ),
    ("predict_answers", {"samples": {"text_input": "a"}, "max_len": 0}, r"max_len: expected 1 or"),
    (
        "predict_answers",
        {"samples": {"text_input": "a"}, "prompt": "Short answer:"},
        r"prompt has no place {} for the question: 'Short answer:'",
    ),
    *(
        (
            "predict_answers",
            {"samples": {"text_input": "a"}, "inference_method": "rank", "answer_list": answers},
            r"needs a list of answers \(answer_list\), got " + seen,
        )
        for answers, seen in (("yes", "'yes'"), ([1, 2], r"\[1, 2\]"), ([], "none"))
    ),
    (
        "predict_answers",
        {
            "samples": {"text_input": "a"},
            "inference_method": "rank",
            "answer_list": ["a"],
            "num_ans_candidates": 0,
        },
        r"num_ans_candidates: expected 1 or more, saw 0",
    ),
    ("generate", {"samples": IMAGE}, r"expected samples as a dictionary .* got a Tensor"),
    (
        "generate",
        {"samples": {"image": IMAGE}, "max_lenght": 3},
        r"generate: unknown option 'max_lenght'. Did you mean 'max_length'",
    ),
    (
        "generate",
        {"samples": {"image": IMAGE}, "num_beams": "3"},
        r"generate.num_beams: expected a whole number, saw '3' \(str\)",
    ),
    (
        "generate",
        {"samples": {"image": IMAGE}, "num_beams": 2.5},
        r"generate.num_beams: expected a whole number, saw 2.5",
    ),
    (
        "generate",
        {"samples": {"image": IMAGE}, "use_nucleus_sampling": "yes"},
        r"use_nucleus_sampling: expected true or false, saw 'yes'",
    ),
    (
        "generate",
        {"samples": {"image": IMAGE}, "length_penalty": "long"},
        r"length_penalty: expected a number, saw 'long'",
    ),
    # OPT's max_length counts a start token of LAVIS's
    ("generate", {"samples": {"image": IMAGE}, "max_length": 1}, r"max_length: expected 2 or more"),
    (
        "generate",
        {"samples": {"image": IMAGE, "prompt": "a red cat " * 60}},
        r"The prompt is too long for .* the model reads \d+ in all",
    ),
    ("chat", {"samples": {}, "messages": []}, r"last message must be the user's"),
    ("chat", {"samples": {}, "messages": "hi"}, r"messages: expected a list, got a str. Pass \["),
    ("chat", {"samples": {}, "messages": ["hi"]}, r"messages\[0\]: expected role and content"),
    (
        "chat",
        {"samples": {}, "messages": [{"role": "user", "content": "hi"}], "max_length": 3},
        r"chat: unknown option 'max_length'. Did you mean 'max_new_tokens'",
    ),
    ("forward", {"samples": {"image": IMAGE}}, r"training Blip2OPT needs samples\['text_input'\]"),
    ("forward", {"samples": {"text_input": ["a"]}}, r"needs samples\['image'\]; got"),
    ("forward", {"samples": {"image": IMAGE, "text_input": ["a"]}}, r"text_input: got 1 for 4"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), BAD_CALLS)
def test_calls_that_cannot_be(
    opt: Blip2LLM, method: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        getattr(opt, method)(**arguments)


def test_a_prompt_that_leaves_no_room_for_captions(model: Blip2LLM) -> None:
    samples = {"image": IMAGE, "text_input": ["a", "b", "c", "d"]}
    with pytest.raises(ConfigError, match=r"The prompt is \d+ tokens long.*max_txt_len=16: 'a red"):
        model({**samples, "prompt": "a red cat " * 40})
    assert model({**samples, "prompt": "a red cat"})["loss"].isfinite()
    questions = {**samples, "text_input": ["a red cat " * 40] * 4, "text_output": ["yes"] * 4}
    assert model(questions)["loss"].isfinite()  # those are cut


@pytest.mark.parametrize(
    ("own", "other", "advice"), [("opt", "t5", "blip2_t5"), ("t5", "opt", "blip2_opt")]
)
def test_an_architecture_with_the_other_kind_of_language_model(
    own: str, other: str, advice: str, tmp_path: Path
) -> None:
    model, config = KINDS[own]
    cfg = config(language=language_config(other, tmp_path), num_query_tokens=8)
    with pytest.raises(ConfigError, match=rf"speaks through an? .*model.arch={advice}.*blip2_llm"):
        model.from_config(cfg)  # before the tower, which is huge, is built


def test_options_are_checked_before_anything_is_built() -> None:
    for change, message in (
        ({"num_query_tokens": 0}, "model.num_query_tokens"),
        ({"max_txt_len": 1}, "model.max_txt_len"),
        ({"max_output_txt_len": 0}, "model.max_output_txt_len"),
    ):
        with pytest.raises(ConfigError, match=message):
            Blip2LLMConfig(**change).check()


# ---- any adapter


class TwoWords(torch.nn.Module):
    """A language model of a user's own: not one of the library's."""

    kind, hidden_size, context_length = "causal", 6, None

    class tokenizer:
        @staticmethod
        def get_vocab() -> dict[str, int]:
            return {"a": 0, "b": 1}

    def nll(self, prefix: torch.Tensor, _: Any, targets: Any, **options: Any) -> Any:
        from lavislite.models.language.base import NLL

        assert options["max_txt_len"] == 32
        return NLL(prefix.square().sum((1, 2)), torch.tensor([len(t) for t in targets]))

    def generate(self, _: torch.Tensor, prompts: list[str], options: Any, **more: Any) -> Any:
        assert set(more) == {"prefix_mask", "max_txt_len"}
        return [f"{prompt} {options.max_new_tokens}" for prompt in prompts]


def test_a_language_model_of_ones_own() -> None:
    cfg = Blip2LLMConfig(qformer=tiny_config().qformer, num_query_tokens=8, prompt="a")
    model = Blip2LLM.from_config(cfg, vision=tiny_eva(), language=TwoWords())
    assert model.generate({"image": IMAGE}, max_new_tokens=7) == ["a 7"] * 4
    model({"image": IMAGE, "text_input": ["b"] * 4})["loss"].backward()
    assert model.llm_proj.weight.grad is not None
    assert set(model.identity()) == {"vision", "language", "language_tokenizer"}
