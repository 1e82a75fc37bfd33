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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays, Dataset, Preview
from engine.data.user_files import checks
from engine.data.user_files.files import check_bytes, quoted
from engine.data.user_files.labels import check_training_split, labelled, labelled_split, split
from engine.data.user_files.previews import MOST_IMAGES, preview

MAX_IMAGES = 200_000
MAX_IMAGE_BYTES = 50_000_000
IMAGE_SIDE = 64  # longer side in pixels; larger images are scaled down

# Formats that Pillow reads by itself: no PostScript, which starts another program.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip

_ORIENTATION = 0x0112  # Exif tag; values 5 to 8 swap width and height (CIPA DC-008, 4.6.4)
_TRAIN, _TEST, _VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")
_16_BIT = 257  # 65,535 / 255: sixteen-bit values on the scale of bytes


@dataclass(frozen=True, slots=True)
class _Folder:
    """The images of a folder before they are decoded."""

    paths: list[Path]
    y: np.ndarray  # (n,) int64
    test: np.ndarray | None  # mask of the images below test/, (n,) bool; None if the folder has no such split
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (channels, height, width) to which all images are scaled
    is_deep: bool  # some images have more than 8 bits per pixel
    notes: list[str]
    version: str

    @property
    def dtype(self) -> type[np.generic]:
        """The type of the pixels."""
        return np.float32 if self.is_deep else np.uint8


@dataclass(slots=True)
class _Headers:
    """What the headers of the images say, taken together."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    is_grey: bool = True
    is_deep: bool = False
    transparent: int = 0
    cut: int = 0  # colour images with 16 bits per channel, of which Pillow reads 8
    animated: int = 0


def read_images(path: Path, _: Source) -> Arrays:
    """Images (n, c, h, w) in the most common size: uint8, or float32 if an image has more than 8 bits per pixel.

    Raises:
        ConfigError: As `user_files.read` does.
    """
    folder = _folder(path)
    digest = hashlib.sha256()
    x = np.empty((len(folder.paths), *folder.shape), folder.dtype)
    for i, file in enumerate(folder.paths):
        content = file.read_bytes()
        digest.update(str(file.relative_to(path)).encode(errors="surrogateescape") + b"\0" + content)
        x[i] = _pixels(content, folder, file.name)
    sha256, more = digest.hexdigest(), dict[str, Any]({"notes": folder.notes, "version": folder.version})
    if folder.test is None:
        return labelled(path.name, x, folder.y, folder.classes, sha256, **more)
    train, test = ((x[mask], folder.y[mask]) for mask in (~folder.test, folder.test))
    return labelled_split(path.name, train, test, folder.classes, sha256, **more)


def inspect_images(path: Path) -> tuple[Dataset, Preview]:
    """The facts of a folder, from the headers of its images, and a preview with its first images.

    Only as many images are decoded as it takes to find two that differ. Raises ConfigError as `user_files.read` does.
    """
    folder = _folder(path)
    test = split(folder.y, folder.classes) if folder.test is None else folder.test
    training = [file for file, is_test in zip(folder.paths, test, strict=True) if not is_test]
    first = _pixels(training[0].read_bytes(), folder, training[0].name)
    if all((_pixels(file.read_bytes(), folder, file.name) == first).all() for file in training[1:]):
        checks.refuse_constant(np.broadcast_to(first, (len(training), *first.shape)))
    warnings = checks.class_balance(folder.y[~test], folder.y[test], folder.classes)
    facts = Dataset(
        path.name,
        "image",
        folder.shape,
        len(folder.classes),
        int((~test).sum()),
        int(test.sum()),
        notes=tuple(folder.notes),
        warnings=tuple(warnings),
        version=folder.version,
    )
    shown = [int(np.argmax(folder.y == label)) for label in range(min(MOST_IMAGES, len(folder.classes)))]
    pixels = [_pixels(folder.paths[i].read_bytes(), folder, folder.paths[i].name) for i in shown]
    return facts, preview(facts, folder.y[~test], folder.y[test], folder.classes, np.stack(pixels), folder.y[shown])


def _folder(root: Path) -> _Folder:
    """The images of a folder.

    Raises:
        ConfigError: The folder does not have one subfolder of images per class, or has too many images.
    """
    skipped: Counter[str] = Counter()
    found = _subfolders(root, skipped)
    if not found:
        raise ConfigError("has no subfolders.", fix="Put the images of each class into a subfolder with its name.")
    train, test, note = _splits(found)
    if train:
        parts = [_classes_of(part, root, skipped) for part in (train, test) if part]
        if unseen := sorted(parts[-1].keys() - parts[0].keys()):
            raise ConfigError(
                f"its test folder has the class {quoted(unseen[0])}, which its training folder does not have."
            )
    else:
        parts = [_classes_of_folders(found, root, skipped)]
    classes = sorted(parts[0])
    paths, y = [], []
    for part in parts:
        for name, files in sorted(part.items()):
            paths += files
            y += [classes.index(name)] * len(files)
    if len(paths) > MAX_IMAGES:
        raise ConfigError(f"has more than {MAX_IMAGES:,} images.", fix="Use a part of them.")
    first_test = sum(map(len, parts[0].values()))
    is_test = np.arange(len(paths)) >= first_test if len(parts) > 1 else None
    if is_test is not None:
        check_training_split(first_test, classes)
    headers = _headers(paths)
    shape = _common_shape(headers)
    check_bytes(len(paths) * math.prod(shape) * (4 if headers.is_deep else 1))
    notes = [*note, *_skipped_in_words(skipped), *_headers_in_words(headers, shape)]
    return _Folder(
        paths, np.array(y, np.int64), is_test, tuple(classes), shape, headers.is_deep, notes, _version(root, paths)
    )


def _splits(folders: dict[str, Path]) -> tuple[Path | None, Path | None, list[str]]:
    """The folders train/ and test/, if the folder has this layout, and a sentence about it."""
    by_name = {name.lower(): folder for name, folder in folders.items()}
    train, test, validation = (
        next((by_name[name] for name in names if name in by_name), None) for names in (_TRAIN, _TEST, _VALIDATION)
    )
    if train is None or not (test or validation) or not by_name.keys() <= {*_TRAIN, *_TEST, *_VALIDATION}:
        return None, None, []
    if not any(entry.is_dir() for entry in os.scandir(train)):  # two classes with these names
        return None, None, []
    chosen = test or validation
    assert chosen
    note = f"The split is that of the folders {train.name} and {chosen.name}."
    unused = [f"The folder {validation.name} is not used."] if test and validation else []
    return train, chosen, [note, *unused]


def _subfolders(folder: Path, skipped: Counter[str]) -> dict[str, Path]:
    """The subfolders by name; other entries are counted in `skipped`."""
    found = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_hidden(entry):
            continue
        if not _is_inside(entry, folder):
            skipped["links to another place"] += 1
        elif entry.is_dir():
            found[entry.name] = Path(entry.path)
        else:
            skipped[f"{_kind(entry)} outside the class folders"] += 1
    return found


def _classes_of(part: Path, root: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    return _classes_of_folders(_subfolders(part, skipped), root, skipped)


def _classes_of_folders(folders: dict[str, Path], root: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """The images of each class folder.

    Raises:
        ConfigError: One has no image.
    """
    found: dict[str, list[Path]] = {}
    for name, folder in folders.items():
        files = []
        for entry in os.scandir(folder):
            if _is_hidden(entry):
                continue
            if not _is_inside(entry, root):
                skipped["links to another place"] += 1
            elif _is_image(entry):
                files.append(Path(entry.path))
            else:
                skipped["folders inside the class folders" if entry.is_dir() else _kind(entry)] += 1
        if not files:
            raise ConfigError(
                f"its subfolder {quoted(name)} has no image ({', '.join(sorted(s[1:] for s in IMAGE_SUFFIXES))}).",
                fix="Choose the folder whose subfolders are the classes.",
            )
        found[name] = sorted(files)
    return found


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _kind(entry: os.DirEntry[str]) -> str:
    suffix = Path(entry.name).suffix.lower()
    return f"{suffix} files" if suffix and entry.is_file() else "other files"


def _is_inside(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether an entry is not a link to a place outside the folder."""
    # not Path.resolve, which raises RuntimeError for a link to itself
    return not entry.is_symlink() or Path(os.path.realpath(entry.path)).is_relative_to(os.path.realpath(root))


def _is_image(entry: os.DirEntry[str]) -> bool:
    if Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES or not entry.is_file():
        return False
    if entry.stat().st_size > MAX_IMAGE_BYTES:
        raise ConfigError(f"{quoted(entry.name)} has more than {MAX_IMAGE_BYTES:,} bytes.", fix="Remove it.")
    return True


def _version(root: Path, paths: Sequence[Path]) -> str:
    """A hash of the names, sizes and times of the images: reading all of them would take too long."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(
            f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def _headers(paths: Sequence[Path]) -> _Headers:
    found = _Headers()
    for path in paths:
        with _opened(path, path.name) as image:
            found.sizes[_upright_size(image)] += 1
            found.is_grey &= _is_grey(image)
            found.is_deep |= _is_deep(image)
            found.transparent += _is_transparent(image)
            found.cut += image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)
            found.animated += getattr(image, "is_animated", False)
    return found


def _common_shape(headers: _Headers) -> tuple[int, int, int]:
    """(channels, height, width) of the most common size, scaled down to IMAGE_SIDE; 1 channel if all are grey."""
    ((width, height), _), *_ = headers.sizes.most_common(1)
    scale = min(1.0, IMAGE_SIDE / max(width, height))
    return (1 if headers.is_grey else 3, max(1, round(height * scale)), max(1, round(width * scale)))


def _skipped_in_words(skipped: Counter[str]) -> list[str]:
    """The sentence about what the folder holds besides the images, if there is anything."""
    if not skipped:
        return []
    kinds = [f"{count:,} {kind}" for kind, count in skipped.most_common(5)]
    return [f"Not read: {', '.join(kinds)}{', …' if len(skipped) > 5 else ''}."]


def _headers_in_words(headers: _Headers, shape: tuple[int, int, int]) -> list[str]:
    """Sentences about what reading the images changes."""
    (usual, count), *_ = headers.sizes.most_common(1)
    others, (_, height, width) = headers.sizes.total() - count, shape
    said = {
        f"{others:,} images of another size are scaled and cropped to {width}x{height} pixels.": others,
        f"The images are scaled from {usual[0]}x{usual[1]} to {width}x{height} pixels.": usual != (width, height),
        f"{headers.transparent:,} transparent images are drawn over white.": headers.transparent,
        "Images of 16 bits keep all bits.": headers.is_deep,
        f"{headers.cut:,} colour images have 16 bits per channel; the upper 8 are read.": headers.cut,
        f"{headers.animated:,} files hold several images; the first one is read.": headers.animated,
    }
    return [sentence for sentence, applies in said.items() if applies]


def _upright_size(image: Any) -> tuple[int, int]:
    """Width and height after the rotation that Exif states, as in `_pixels`. Reads only the header."""
    width, height = image.size
    is_rotated = "exif" in image.info and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if is_rotated else (width, height)


def _is_grey(image: Any) -> bool:
    return image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")


def _is_deep(image: Any) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _is_transparent(image: Any) -> bool:
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


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
            with Image.open(file, formats=_FORMATS) as image:
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


def _pixels(content: bytes, folder: _Folder, name: str) -> np.ndarray:
    """Pixels (c, h, w) of the folder's type: rotated as Exif states, scaled, and cropped around the centre.

    Transparent images are drawn over white. Pixels of 16 bits are on the scale of bytes, with fractions.

    Raises:
        ConfigError: The image is damaged or has a pixel that is not finite.
    """
    from PIL import Image, ImageOps

    channels, height, width = folder.shape
    with _opened(io.BytesIO(content), name) as image:
        image.draft(None, (2 * width, 2 * height))  # decodes a JPEG at reduced size, which is much faster
        upright = ImageOps.exif_transpose(image)
        if _is_transparent(upright) and not _is_deep(upright):
            colours = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
        if _is_deep(upright):  # convert() would clip its values
            values = np.asarray(upright, np.float32)
            planes = [Image.fromarray(values if upright.mode == "F" else values / _16_BIT)] * channels
        else:
            planes = list(upright.convert("L" if channels == 1 else "RGB").split())
        if folder.is_deep:
            planes = [plane if plane.mode == "F" else plane.convert("F") for plane in planes]
        pixels = np.stack([np.asarray(ImageOps.fit(plane, (width, height))) for plane in planes])
    if folder.is_deep and not np.isfinite(pixels).all():
        raise ConfigError(f"{quoted(name)} has a pixel that is not finite.", fix="Repair or remove it.")
    return pixels
