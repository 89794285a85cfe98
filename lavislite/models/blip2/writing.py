"""What a stage-2 model does besides training: captions, answers, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lavislite.common.errors import UserError
from lavislite.common.generation import GenerationOptions, require_count
from lavislite.common.registry import did_you_mean
from lavislite.models.blip2.calls import make_options, public_call, require_keys
from lavislite.models.blip2.samples import (
    QUESTION,
    asked_of_all,
    each_with_answers,
    has_pictures,
    one_each,
    pictures,
)
from lavislite.models.blip2.stage2_base import Blip2Language
from lavislite.models.language.chat import render
from lavislite.models.language.rank import rank_by_nll

METHODS = ("generate", "rank")


class Blip2Writer(Blip2Language):
    """What no training step calls."""

    # How the original's class differs: max_length counts so many tokens that are not written, the
    # length penalty of answers, and prompts are cut to max_txt_len.
    lavis_start_tokens: ClassVar[int] = 0
    answer_length_penalty: ClassVar[float] = -1.0
    cuts_prompts: ClassVar[bool] = False

    @public_call
    @torch.no_grad()
    def generate(
        self,
        samples: dict[str, Any],
        use_nucleus_sampling: bool = False,
        num_beams: int = 5,
        max_length: int | None = None,
        min_length: int | None = None,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        num_captions: int = 1,
        temperature: float = 1.0,
        *,
        max_new_tokens: int = 30,
        min_new_tokens: int = 1,
        no_repeat_ngram_size: int = 0,
        prompt: str | Sequence[str] | None = None,
    ) -> list[str]:
        """New text after ``samples["image"]`` and a prompt: B * num_captions texts, image by image.

        Without ``image`` the language model alone goes on.

        Args:
            samples: ``image`` (see `image_prefix`); perhaps ``prompt``, a string or one per image;
                perhaps ``question``, what a Q-Former that reads is asked instead of the prompt.
            max_length, min_length: lengths as LAVIS counted them; they replace `max_new_tokens`
                and `min_new_tokens`.
            prompt: used when the samples have none; None is the model's own.

        Raises:
            UserError: prompts and images differ in number, or an option cannot be.
        """
        options = GenerationOptions(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            num_beams=num_beams,
            use_nucleus_sampling=use_nucleus_sampling,
            top_p=top_p,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_captions=num_captions,
        )
        options = self._with_lavis_lengths(options, max_length, min_length)
        given = samples.get("prompt", self.cfg.prompt if prompt is None else prompt)
        return self._write(samples, given, options, "generate")

    @public_call
    @torch.no_grad()
    def predict_answers(
        self,
        samples: dict[str, Any],
        num_beams: int = 5,
        inference_method: str = "generate",
        max_len: int = 10,
        min_len: int = 1,
        num_ans_candidates: int = 128,
        answer_list: Sequence[str] | Sequence[Sequence[str]] | None = None,
        prompt: str = "",
        length_penalty: float | None = None,
        **options: Any,
    ) -> list[str]:
        """One answer for each question of ``samples["text_input"]`` about ``samples["image"]``.

        A Q-Former that reads is asked ``samples["question"]``, else ``text_input`` as it is.

        Args:
            inference_method: "generate" writes an answer, "rank" picks the likeliest of
                `answer_list`: that with the greatest probability of all its tokens and of the end
                after them. (No mean over the tokens: of two answers the longer one has to be the
                more certain with each token.)
            num_ans_candidates: so many pairs of question and answer are scored at once.
            answer_list: the answers to choose from; or for each question a list of its own.
            prompt: with ``{}`` for the question; empty is the model's own, if it has such a one.
            length_penalty: None is LAVIS's default for this model.
            options: further fields of `GenerationOptions`, such as `repetition_penalty`.

        Raises:
            UserError: no questions or answers to choose from, or an option cannot be.
        """
        what = "predict_answers"
        if inference_method not in METHODS:
            raise UserError(
                f"{what}: inference_method must be 'generate' or 'rank', got '{inference_method}'."
                f"{did_you_mean(inference_method, METHODS)}"
            )
        require_keys(samples, ("text_input",), what)
        require_count(f"{what}.max_len", max_len)
        require_count(f"{what}.min_len", min_len, 0)
        penalty = self.answer_length_penalty if length_penalty is None else length_penalty
        chosen = make_options(
            what,
            options,
            lavis_lengths=True,
            max_len=("max_new_tokens", max_len),
            min_len=("min_new_tokens", min_len),
            num_beams=("num_beams", num_beams),
            length_penalty=("length_penalty", penalty),
        )
        prompts = self._asked(samples["text_input"], prompt)
        samples = {**samples, "question": asked_of_all(samples, samples["text_input"])}
        if inference_method == "rank":
            require_count(f"{what}.num_ans_candidates", num_ans_candidates)
            choices = each_with_answers(answer_list, len(prompts))
            return self._rank(samples, prompts, choices, num_ans_candidates)
        return self._write(samples, prompts, chosen, what)

    @public_call
    @torch.no_grad()
    def chat(
        self, samples: dict[str, Any], messages: Sequence[Mapping[str, str]], **options: Any
    ) -> list[str]:
        """The next turn of a conversation about each of ``samples["image"]``.

        Args:
            messages: so far, each ``{"role": "user" | "assistant" | "system", "content": ...}``.
            options: fields of `GenerationOptions`.

        Raises:
            UserError: a message lacks something, the last is not the user's, or an option is
                unknown.
        """
        chosen = make_options("chat", options)
        text = render(self.language.tokenizer, messages)
        samples = {**samples, "question": asked_of_all(samples, messages[-1]["content"])}
        return self._write(samples, text, chosen, "chat")

    # ---- how

    def _with_lavis_lengths(
        self, options: GenerationOptions, max_length: int | None, min_length: int | None
    ) -> GenerationOptions:
        if max_length is None and min_length is None:
            return options
        longest = options.max_new_tokens
        if max_length is not None:
            require_count("generate.max_length", max_length, 1 + self.lavis_start_tokens)
            longest = max_length - self.lavis_start_tokens
        shortest = options.min_new_tokens if min_length is None else min_length
        return replace(options, max_new_tokens=longest, min_new_tokens=shortest, lavis_lengths=True)

    def _asked(self, questions: Any, prompt: str) -> list[str]:
        """The questions in their form."""
        if prompt and QUESTION not in prompt:
            raise UserError(
                f"predict_answers: prompt has no place {QUESTION} for the question: {prompt!r}. "
                "Write it such as 'Question: {} Short answer:'."
            )
        form = prompt or self.cfg.prompt
        asked = [questions] if isinstance(questions, str) else questions
        asked = one_each(asked, None, "text_input")
        return [form.replace(QUESTION, q) if QUESTION in form else q for q in asked]

    def _write(
        self, samples: dict[str, Any], prompts: Any, options: GenerationOptions, what: str
    ) -> list[str]:
        options.check(what)
        key = "text_input" if what == "predict_answers" else "prompt"
        texts, prefix, mask = self._prefix(samples, prompts, key)
        limit = self.cfg.max_txt_len if self.cuts_prompts and options.lavis_lengths else None
        return self.language.generate(prefix, texts, options, prefix_mask=mask, max_txt_len=limit)

    def _prefix(
        self, samples: dict[str, Any], prompts: Any, key: str
    ) -> tuple[list[str], Tensor, Tensor | None]:
        """A prompt for each sample, what comes before it (nothing without an image), and its mask.

        Args:
            key: the name of the prompts in messages.
        """
        if not has_pictures(samples):
            texts = one_each(prompts, None, key)
            nothing = self.llm_proj.weight.new_zeros(len(texts), 0, self.language.hidden_size)
            return texts, nothing, None
        found = pictures(samples, check_values=True)
        texts = one_each(prompts, len(found.counts), key)
        return texts, *self._look(found, asked_of_all(samples, texts))

    def _rank(
        self, samples: dict[str, Any], prompts: list[str], answers: list[list[str]], at_once: int
    ) -> list[str]:
        """The most probable of its answers, end included, after each prompt."""
        prompts, prefix, mask = self._prefix(samples, prompts, "text_input")
        rank = getattr(self.language, "rank", None) or partial(rank_by_nll, self.language)
        scores = rank(prefix, prompts, answers, prefix_mask=mask, at_once=at_once)
        best = torch.stack([total.argmin() for total in scores]).tolist()
        return [choices[i] for choices, i in zip(answers, best, strict=True)]
