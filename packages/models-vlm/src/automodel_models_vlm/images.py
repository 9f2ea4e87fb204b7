"""Images as rows have them: decoded where they are used, with a reason where they cannot be."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from automodel_huggingface.bad_rows import BadRowError, kind_name
from PIL import Image, ImageOps, UnidentifiedImageError

MOST_SHOWN = 200


def check_image(value: Any, directory: Path) -> None:
    """Check that an image is there, without decoding it.

    Raises:
        BadRowError: it is of a kind that is not read, or its file is missing.
    """
    source = _source(value, directory)
    if not isinstance(source, Path):
        return
    try:
        present = source.is_file()
    except OSError:  # the name is too long
        present = False
    if not present:
        name = str(source)
        hint = " (base64 text begins with data:image/png;base64,)" if len(name) > MOST_SHOWN else ""
        raise BadRowError(f"there is no image file {name:.{MOST_SHOWN}}{'...' if hint else ''}{hint}")


def load_image(value: Any, directory: Path) -> Image.Image:
    """Decode an image to RGB, turned as its EXIF data say.

    Args:
        value: a path, `data:image/...;base64,...`, bytes, `{bytes, path}` as `datasets` has them, or a PIL image.
        directory: what relative paths start from: that of the file with the row.

    Raises:
        BadRowError: it is missing or broken.
    """
    source = _source(value, directory)
    if isinstance(source, Image.Image):
        return _rgb(source)
    name = str(source) if isinstance(source, Path) else f"of {len(source):,} bytes"
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _rgb(image)
    except FileNotFoundError as error:
        raise BadRowError(f"there is no image file {name}") from error
    except UnidentifiedImageError as error:
        raise BadRowError(f"the image {name} is broken, or no image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise BadRowError(f"the image {name} is broken: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would cut off at 255; of colours with 16 bits it keeps the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _source(value: Any, directory: Path) -> Path | bytes | Image.Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadRowError("an image is null")
    if isinstance(value, bytes | Image.Image):
        return value
    if not isinstance(value, str):
        raise BadRowError(f"an image is {kind_name(value)}, not a path, base64 text or bytes")
    if value.startswith("data:"):
        try:
            return base64.b64decode(value.partition(",")[2], validate=True)
        except ValueError as error:  # binascii.Error is one
            raise BadRowError(f"an image is no base64 text: {error}") from error
    if value.startswith(("http://", "https://")):
        raise BadRowError(f"the image {value[:80]} is not fetched from the network: save it and name the file")
    return directory / value.removeprefix("file://")
