"""Reads a folder of images with one subfolder per class. All images are scaled to one size."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays, Dataset
from engine.data.user_files.files import check_bytes, quoted
from engine.data.user_files.labels import labelled, split

MAX_IMAGES = 200_000
MAX_IMAGE_BYTES = 50_000_000
IMAGE_SIDE = 64  # longer side in pixels; larger images are scaled down
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"}

_ORIENTATION = 0x0112  # Exif tag; values 5 to 8 swap width and height (CIPA DC-008, 4.6.4)


@dataclass(frozen=True, slots=True)
class _Folder:
    """The images of a folder before they are decoded."""

    paths: list[Path]
    y: np.ndarray  # (n,) int64
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (channels, height, width) to which all images are scaled


def read_images(path: Path, _: Source) -> Arrays:
    """Images (n, c, h, w) uint8 in the most common size. Raises ConfigError as `user_files.read` does."""
    folder = _folder(path)
    digest = hashlib.sha256()
    x = np.empty((len(folder.paths), *folder.shape), np.uint8)
    for i, file in enumerate(folder.paths):
        content = file.read_bytes()
        digest.update(str(file.relative_to(path)).encode(errors="surrogateescape") + b"\0" + content)
        x[i] = _pixels(content, folder.shape, file.name)
    return labelled(path.name, x, folder.y, folder.classes, digest.hexdigest())


def images_facts(path: Path) -> Dataset:
    """The facts of a folder, from the headers of its images. Raises ConfigError as `user_files.read` does."""
    folder = _folder(path)
    test = int(split(folder.y, folder.classes).sum())
    return Dataset(path.name, "image", folder.shape, len(folder.classes), len(folder.paths) - test, test)


def _folder(root: Path) -> _Folder:
    """The images of a folder.

    Raises:
        ConfigError: The folder does not have one subfolder of images per class, or has too many images.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and _is_inside(entry, root))
    if not classes:
        raise ConfigError("has no subfolders.", fix="Put the images of each class into a subfolder with its name.")
    paths: list[Path] = []
    y: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(Path(e.path) for e in os.scandir(root / name) if _is_inside(e, root) and _is_image(e))
        if not files:
            raise ConfigError(
                f"its subfolder {quoted(name)} has no image ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}).",
                fix="Choose the folder whose subfolders are the classes.",
            )
        paths += files
        y += [label] * len(files)
        if len(paths) > MAX_IMAGES:
            raise ConfigError(f"has more than {MAX_IMAGES:,} images.", fix="Use a part of them.")
    shape = _common_shape(paths)
    check_bytes(len(paths) * math.prod(shape))
    return _Folder(paths, np.array(y, np.int64), tuple(classes), shape)


def _is_inside(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether an entry is not hidden and not a link to a place outside the folder."""
    if entry.name.startswith(".") or entry.name == "__MACOSX":
        return False
    # not Path.resolve, which raises RuntimeError for a link to itself
    return not entry.is_symlink() or Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(root))


def _is_image(entry: os.DirEntry[str]) -> bool:
    if Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES or not entry.is_file():
        return False
    if entry.stat().st_size > MAX_IMAGE_BYTES:
        raise ConfigError(f"{quoted(entry.name)} has more than {MAX_IMAGE_BYTES:,} bytes.", fix="Remove it.")
    return True


def _common_shape(paths: Sequence[Path]) -> tuple[int, int, int]:
    """(channels, height, width) of the most common size, scaled down to IMAGE_SIDE; 1 channel if all are grey."""
    sizes: Counter[tuple[int, int]] = Counter()
    grey = True
    for path in paths:
        with _opened(path, path.name) as image:
            sizes[_upright_size(image)] += 1
            grey &= _is_grey(image)
    ((width, height), _), *_ = sizes.most_common(1)
    scale = min(1.0, IMAGE_SIDE / max(width, height))
    return (1 if grey else 3, max(1, round(height * scale)), max(1, round(width * scale)))


def _upright_size(image: Any) -> tuple[int, int]:
    """Width and height after the rotation that Exif states, as in `_pixels`. Reads only the header."""
    width, height = image.size
    is_rotated = "exif" in image.info and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if is_rotated else (width, height)


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I")


@contextlib.contextmanager
def _opened(file: Path | IO[bytes], name: str) -> Iterator[Any]:
    """Context manager: the image with its header read. Errors inside the block become errors about this image.

    Raises:
        ConfigError: The image is damaged or has too many pixels.
        PermissionError: The file is not readable for this user.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # for unusual metadata
            with Image.open(file) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ConfigError(f"{quoted(name)} has too many pixels.", fix="Make it smaller or remove it.") from None
    except PermissionError:  # an OSError as well, but the image is not damaged
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        EOFError,
        IndexError,
        struct.error,
        zlib.error,
    ):  # raised by Pillow
        raise ConfigError(f"{quoted(name)} is not a complete image.", fix="Repair or remove it.") from None


def _pixels(content: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """Pixels (c, h, w) uint8: rotated as Exif states, scaled, and cropped around the centre."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    with _opened(io.BytesIO(content), name) as image:
        image.draft(None, (2 * width, 2 * height))  # decodes a JPEG at reduced size, which is much faster
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits, which convert() would clip
            upright = Image.fromarray((np.asarray(upright) // 256).clip(0, 255).astype(np.uint8))
        fitted = ImageOps.fit(upright.convert("L" if channels == 1 else "RGB"), (width, height))
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)
