"""Where bert-base-uncased is found: our cache, the Hugging Face cache, or the hub."""

from __future__ import annotations

from pathlib import Path

from lavislite.common.errors import UserError
from lavislite.common.hub import hub_trouble
from lavislite.common.io import cache_dir

BERT = "bert-base-uncased"
BERT_REPOS = ("google-bert/bert-base-uncased", BERT)


def find_bert(filename: str) -> Path:
    """A file of bert-base-uncased: in our cache, in the Hugging Face cache, or from the hub.

    Raises:
        UserError: nowhere to be had; the message says where to put it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    own = cache_dir() / BERT / filename
    if own.exists():
        return own
    for repo in BERT_REPOS:
        found = try_to_load_from_cache(repo, filename)
        if isinstance(found, str):
            return Path(found)
    try:
        if (trouble := hub_trouble()) is not None:
            raise ConnectionError(trouble)
        return Path(hf_hub_download(BERT_REPOS[0], filename))
    except Exception as error:  # every kind of network trouble has a class of its own
        raise UserError(
            f"{BERT}'s {filename} is not in the Hugging Face cache and the hub cannot be reached "
            f"({error}). Put it into {own.parent}, or name a folder that holds it."
        ) from error
