"""What a stage-2 model is given: pictures, prompts and texts, checked and put into order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lavislite.common.errors import UserError

QUESTION = "{}"  # the place of the question in a prompt
LARGEST = 20.0  # normalised pixels stay far below it, those of a file reach 255


class Pictures(NamedTuple):
    """The different pictures of a batch, and which of them each sample shows.

    pixels: [n, 3, H, W]; or None when their features are known.
    counts: how many each of B samples has.
    shows: [sum(counts)] the picture in each place; None when all places show different ones.
    features: [n, T, C], the vision tower's output.
    """

    pixels: Tensor | None
    counts: list[int]
    shows: Tensor | None = None
    features: Tensor | None = None

    @property
    def even(self) -> bool:
        return len(set(self.counts)) == 1

    def in_places(self, rows: Tensor) -> Tensor:
        """What was computed of the different pictures [n, ...], in the places that show them."""
        return rows if self.shows is None else rows.index_select(0, self.shows.to(rows.device))

    def per_sample(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of all places [m, Q, d] -> each sample's in a row [B, k, d], and a mask [B, k].

        Padding is on the right; the mask is None when there is none.
        """
        if self.even:
            return rows.reshape(len(self.counts), -1, rows.shape[-1]), None
        parts = [part.flatten(0, 1) for part in rows.split(self.counts)]
        lengths = torch.tensor([len(part) for part in parts], device=rows.device)
        joined = pad_sequence(parts, batch_first=True)
        return joined, torch.arange(joined.shape[1], device=rows.device) < lengths[:, None]


# ---- pictures


def has_pictures(samples: Mapping[str, Any]) -> bool:
    """Whether the samples show anything."""
    return any(samples.get(key) is not None for key in ("image", "image_features"))


def pictures(samples: Mapping[str, Any], *, check_values: bool) -> Pictures:
    """``samples["image"]``: [B, 3, H, W], [B, N, 3, H, W], or a list of [3, H, W] or [N, 3, H, W].

    Instead of it, ``image_features`` [B, T, C] are what the vision tower says of one picture per
    sample. With ``image_index`` (whole numbers [B]) both hold fewer entries, and sample b has entry
    ``image_index[b]``. One picture expanded to all samples is taken once, too.

    Args:
        check_values: look at the numbers too, for which a GPU must be waited for.

    Raises:
        UserError: no pictures, another shape, or values that no image processor makes.
    """
    image, features = samples.get("image"), samples.get("image_features")
    if features is not None:
        found = Pictures(None, [1] * len(features), features=features)
    elif isinstance(image, Tensor):
        found = _of_tensor(image)
    elif isinstance(image, list | tuple):
        found = _of_list(image)
    else:
        raise UserError(f"image: expected a tensor, got {type(image).__name__}. {_PROCESSOR}")
    if found.pixels is not None:
        _check_pixels(found.pixels, check_values)
    index = samples.get("image_index")
    return found if index is None else _shared(found, torch.as_tensor(index), check_values)


def _shared(found: Pictures, index: Tensor, check_values: bool) -> Pictures:
    """Samples that show entries `index` of what was found."""
    own = found.counts
    if index.ndim != 1 or index.is_floating_point() or not len(index):
        raise UserError(f"image_index: expected whole numbers [B], got {list(index.shape)}.")
    if check_values and not bool(((index >= 0) & (index < len(own))).all()):
        raise UserError(f"image_index: expected 0 to {len(own) - 1}, got {index.tolist()}.")
    if found.even:
        places = index[:, None] * own[0] + torch.arange(own[0], device=index.device)
        counts = [own[0]] * len(index)
    else:
        chosen, ends = index.tolist(), list(accumulate(own))
        places = torch.tensor([k for i in chosen for k in range(ends[i] - own[i], ends[i])])
        counts = [own[i] for i in chosen]
    return found._replace(counts=counts, shows=_within(found, places.flatten()))


def _within(found: Pictures, places: Tensor) -> Tensor:
    return places if found.shows is None else found.shows.to(places.device)[places]


def _check_pixels(pixels: Tensor, check_values: bool) -> None:
    if not pixels.is_floating_point():
        raise UserError(f"image: expected normalised floats, got {pixels.dtype}. {_PROCESSOR}")
    if check_values and not float(pixels.abs().amax()) < LARGEST:
        raise UserError(
            f"image: expected normalised values around zero, got {float(pixels.min()):g} to "
            f"{float(pixels.max()):g}. {_PROCESSOR}"
        )


_PROCESSOR = 'Pass what the image processor returns: vis_processors["eval"](picture).unsqueeze(0).'


def _of_tensor(image: Tensor) -> Pictures:
    if image.ndim not in (4, 5) or image.shape[-3] != 3:
        raise UserError(
            f"image: expected [B, 3, H, W] or [B, N, 3, H, W], got {list(image.shape)}. A single "
            "picture needs image.unsqueeze(0)."
        )
    if image.shape[:-3].numel() == 0:
        raise UserError(f"image: there is none in a tensor of shape {list(image.shape)}.")
    several = image.shape[1] if image.ndim == 5 else 1
    if len(image) > 1 and image.stride(0) == 0 and several == 1:  # one, expanded
        return Pictures(image[:1], [1] * len(image), torch.zeros(len(image), dtype=torch.long))
    return Pictures(image.reshape(-1, *image.shape[-3:]), [several] * len(image))


def _of_list(image: Sequence[Any]) -> Pictures:
    if not image:
        raise UserError("image: the list is empty; expected one entry per sample.")
    parts: list[Tensor] = []
    for i, entry in enumerate(image):
        if not isinstance(entry, Tensor):
            raise UserError(
                f"image[{i}]: expected a tensor, got {type(entry).__name__}. {_PROCESSOR}"
            )
        part = entry[None] if entry.ndim == 3 else entry
        if part.ndim != 4 or part.shape[1] != 3 or len(part) == 0:
            raise UserError(
                f"image[{i}]: expected [3, H, W] or [N, 3, H, W] with N >= 1, got "
                f"{list(entry.shape)}."
            )
        if part.shape[1:] != (parts or [part])[0].shape[1:]:
            raise UserError(
                f"image[{i}] is {list(part.shape[2:])} pixels, image[0] "
                f"{list(parts[0].shape[2:])}; all must have one size."
            )
        parts.append(part)
    return Pictures(torch.cat(parts), [len(part) for part in parts])


# ---- prompts and texts


def one_each(texts: Any, count: int | None, what: str) -> list[str]:
    """A string for all `count` samples, or a list with one string for each; None: as many as given.

    Raises:
        UserError: the list is empty, has another length, or holds something else.
    """
    if isinstance(texts, str):
        return [texts] * (1 if count is None else count)
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{what}: expected a string or a list of strings, got {texts!r}.")
    if not texts:
        raise UserError(f"{what}: the list is empty; expected a string, or one for each sample.")
    if count is not None and len(texts) != count:
        raise UserError(
            f"{what}: got {len(texts)} for {count} samples; expected a string, or one for each."
        )
    return list(texts)


def each_with_answers(answers: Any, count: int) -> list[list[str]]:
    """The answers to choose from for each of `count` questions: one list for all, or one for each.

    Raises:
        UserError: there are none, they are something else, or other lists than questions.
    """
    several = isinstance(answers, list | tuple) and any(
        isinstance(entry, list | tuple) for entry in answers
    )
    for i, choices in enumerate(answers if several else [answers]):
        listed = isinstance(choices, list | tuple)
        if not listed or not choices or not all(isinstance(a, str) for a in choices):
            seen = "none" if choices is None or choices in ([], ()) else repr(choices)[:60]
            where = f" for question {i}" if several else ""
            raise UserError(
                "predict_answers: inference_method 'rank' needs a list of answers (answer_list)"
                f"{where}, got {seen}."
            )
    if several and len(answers) != count:
        raise UserError(
            f"predict_answers: got {len(answers)} lists of answers for {count} questions; expected "
            "one list, or one for each."
        )
    return [list(choices) for choices in answers] if several else [list(answers)] * count


def asked_of_all(samples: Mapping[str, Any], otherwise: Any) -> Any:
    """What the Q-Former is asked, when it reads: ``samples["question"]`` or `otherwise`."""
    question = samples.get("question")
    return otherwise if question is None else question


def without_prompt(text: str, prompt: str) -> str:
    """What `text` says after `prompt`, with which LAVIS's text processor may have begun it."""
    return text.removeprefix(prompt) if prompt and text != prompt else text


def split_text(text: str, *, at_random: bool) -> tuple[str, str]:
    """A text in two at a word: what is read, perhaps nothing, and at least a word to be written.

    The middle, or a place drawn by torch's generator.
    """
    words = text.split()
    if len(words) < 2:
        return "", text
    at = int(torch.randint(len(words), ())) if at_random else len(words) // 2
    return " ".join(words[:at]), " ".join(words[at:])
