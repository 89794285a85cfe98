"""One picture from the open web: little trust, no waiting."""

from __future__ import annotations

import io
import os
import time
import urllib.error
from pathlib import Path
from typing import Any

from lavislite.common.transfer import open_url

MAX_BYTES = 30 * 10**6
MAX_PIXELS = 100 * 10**6
TIMEOUT = 10.0  # seconds without a byte
DEADLINE = 60.0  # seconds in all
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows others, some of them risky
_AGAIN = (408, 425, 429)  # of the 4xx, those that may go better next time


class PictureError(Exception):
    """Why a picture could not be had, in a few words. `final`: asking again is of no use."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


def fetch_picture(url: str, target: Path, shorter_side: int | None = None) -> None:
    """Store the picture at `url` in the file `target`, which appears whole or not at all.

    With `shorter_side` it is made smaller to this (never larger) and stored as upright RGB JPEG;
    otherwise its bytes are stored as they came.

    Raises:
        PictureError: no answer, no picture, too large, or not an http(s) URL.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise PictureError("not an http(s) URL", final=True)
    data = _read(url)
    stored = _converted(data, shorter_side)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_bytes(stored)
    part.replace(target)


def _read(url: str) -> bytes:
    start = time.monotonic()
    try:
        with open_url(url, {"Accept": "image/*"}, TIMEOUT) as response:
            return _body(response, start)
    except urllib.error.HTTPError as error:
        final = error.code < 500 and error.code not in _AGAIN
        raise PictureError(f"HTTP {error.code}", final=final) from error
    except TimeoutError as error:
        raise PictureError("timed out", final=False) from error
    except OSError as error:  # URLError is one, and SSL errors
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise PictureError("timed out", final=False) from error
        if str(reason).startswith("unknown url type"):  # where a redirection leads
            raise PictureError("not an http(s) URL", final=True) from error
        raise PictureError(f"no connection ({type(reason).__name__})", final=False) from error
    except PictureError:
        raise
    except Exception as error:  # http.client.*, UnicodeError, ValueError: an odd URL or server
        raise PictureError(f"bad answer ({type(error).__name__})", final=True) from error


def _body(response: Any, start: float) -> bytes:
    length = response.headers.get("Content-Length") or ""
    parts, size = [], 0
    if length.isdigit() and int(length) > MAX_BYTES:
        raise PictureError("too large", final=True)
    while chunk := response.read1(1 << 16):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_BYTES:
            raise PictureError("too large", final=True)
        if time.monotonic() - start > DEADLINE:
            raise PictureError("timed out", final=False)
    if length.isdigit() and size < int(length):
        raise PictureError("cut short", final=False)
    return b"".join(parts)


def _converted(data: bytes, shorter_side: int | None) -> bytes:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError("too large", final=True)
            if shorter_side is None:
                image.load()
                return data
            shrink = max(1.0, min(image.size) / shorter_side)
            image.draft("RGB", (int(image.width / shrink), int(image.height / shrink)))
            picture = ImageOps.exif_transpose(image).convert("RGB")
            scale = shorter_side / min(picture.size)
            if scale < 1:
                width, height = (max(1, round(side * scale)) for side in picture.size)
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=90)
            return out.getvalue()
    except PictureError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged data
        raise PictureError("not a picture", final=True) from error
