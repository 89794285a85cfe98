"""The playground's language models: ordinary folders of the library, made by training on text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lavislite.common.errors import ConfigError, UserError
from lavislite.common.generation import GenerationOptions
from lavislite.datasets.playground.text import PlaygroundTextBuilder, PlaygroundTextConfig
from lavislite.models.language.base import LanguageConfig, build_language
from lavislite.models.language.pretraining import TinyLanguageConfig, TinyLanguageModel
from lavislite.models.language.tiny import END, playground_folder

FAMILIES = ("opt", "t5")


def documents(count: int = 40):
    cfg = PlaygroundTextConfig(num_train=count, num_val=8)
    return PlaygroundTextBuilder(cfg, name="playground_text").build("train", train=True)


def fresh(family: str) -> TinyLanguageModel:
    torch.manual_seed(0)
    cfg = TinyLanguageConfig(family=family, width=64, layers=2, heads=4 if family == "opt" else 8)
    return TinyLanguageModel(cfg, documents().captions())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_documents(family: str) -> None:
    model, data = fresh(family), documents()
    batch = data.collate([data[i] for i in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_tokens_and_come_back(family: str) -> None:
    tokenizer = fresh(family).language.tokenizer
    ids = tokenizer("a red circle top left")["input_ids"]
    assert len(ids) == 6  # five words, and the begin or end token
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a red circle top left"
    assert len(tokenizer(END, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_found_by_name_and_writes_the_same(family: str) -> None:
    name = f"playground_{family}"
    with pytest.raises(UserError, match=f"projects/blip2/{name}.yaml"):
        build_language(LanguageConfig(name=name))
    model = fresh(family).eval()
    model.save(playground_folder(family), "recipe")
    assert (playground_folder(family) / "recipe.txt").read_text() == "recipe"
    loaded = build_language(LanguageConfig(name=name))
    assert not any(p.requires_grad for p in loaded.parameters())
    prefix = torch.randn(2, 3, loaded.hidden_size)
    options = GenerationOptions(max_new_tokens=6)
    prompts = ["Question: where is it? Answer:", ""]
    assert loaded.generate(prefix, prompts, options) == model.language.generate(
        prefix, prompts, options
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_question_is_answered_with_and_without_the_description(family: str) -> None:
    model, data = fresh(family).eval(), documents(6)
    batch = data.collate([data[0], data[1]])
    told, guessed = model.answer(batch), model.answer(batch, with_context=False)
    asked = [len(questions) for questions in batch["questions"]]
    assert [len(answers) for answers in told] == [len(answers) for answers in guessed] == asked


def test_first_weights_look_back_and_match(tmp_path: Path) -> None:
    """Untrained, the OPT's first heads attend to the token so many places before."""
    model = fresh("opt").language.model
    model.config._attn_implementation = "eager"
    ids = torch.randint(5, 300, (1, 20))
    seen = model(ids, output_attentions=True).attentions[0][0]  # [heads, 20, 20]
    for head, distance in enumerate((1, 2, 3, 4)):
        looks = seen[head, 10:].argmax(-1)
        assert (looks == torch.arange(10, 20) - distance).float().mean() > 0.9


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.family: 'otp' is unknown. Did you mean 'opt'"):
        TinyLanguageModel(TinyLanguageConfig(family="otp"), [])
