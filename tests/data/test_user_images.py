"""Users' folders of images: the arrays that are read, and the error for each kind of wrong folder."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from engine.config.data import Source
from engine.data import user_files
from tests.data.user_data import refused


def test_a_folder_per_class_becomes_labelled_colour_images(folder):
    arrays = user_files.read("images", Source(path=str(folder)))
    assert arrays.classes == ("blue", "red") and arrays.facts.shape == (3, 6, 8)
    red = arrays.train_x[arrays.train_y == 1]
    assert red.dtype == np.uint8 and (red[:, 0] == 255).all() and not red[:, 1:].any()


def test_images_are_grey_when_all_are(folder):
    for path in folder.rglob("*.png"):
        Image.new("L", (8, 6), 77 if path.parent.name == "red" else 99).save(path)
    arrays = user_files.read("images", Source(path=str(folder)))
    assert arrays.facts.shape == (1, 6, 8) and (arrays.train_x[arrays.train_y == 1] == 77).all()


def test_all_images_are_scaled_to_the_most_common_size_without_stretching(folder):
    wide = Image.new("RGB", (80, 20), (0, 255, 0))
    wide.paste((255, 0, 0), (30, 0, 50, 20))  # a crop around the centre keeps most of it
    wide.save(folder / "red" / "0.png")
    arrays = user_files.read("images", Source(path=str(folder)))
    images = np.concatenate([arrays.train_x, arrays.test_x])
    assert images.shape[1:] == (3, 6, 8)
    (cropped,) = [image for image in images if image[1].any()]
    assert (cropped[0, :, 2:6] == 255).all() and cropped[0].mean() > 150


def test_large_images_are_scaled_down_to_64_pixels(folder):
    for path in folder.rglob("*.png"):
        Image.new("RGB", (300, 150), path.parent.name).save(path.with_suffix(".jpg"))
        path.unlink()
    assert user_files.read("images", Source(path=str(folder))).facts.shape == (3, 32, 64)


def test_sixteen_bit_and_palette_and_transparent_images_are_read(folder):
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(folder / "red" / "0.png")
    Image.new("P", (8, 6)).save(folder / "red" / "1.gif")
    Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(folder / "red" / "2.webp")
    Image.new("CMYK", (8, 6)).save(folder / "red" / "3.jpg")
    arrays = user_files.read("images", Source(path=str(folder)))
    assert (np.concatenate([arrays.train_x, arrays.test_x]) == np.float32(40_000 / 257)).all(axis=(1, 2, 3)).sum() == 1


def test_a_photo_is_rotated_as_exif_states(folder):
    for path in folder.rglob("*.png"):
        image = Image.new("RGB", (8, 6), (0, 0, 0))
        image.paste((255, 255, 255 if path.parent.name == "red" else 250), (0, 0, 8, 3))
        exif = image.getexif()
        exif[0x0112] = 3  # upside down
        image.save(path, exif=exif)
    image = user_files.read("images", Source(path=str(folder))).train_x[0]
    assert not image[:, :3].any() and (image[:, 3:] >= 250).all()


def test_photos_in_portrait_format_are_portrait_images(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for path in folder.rglob("*.png"):
        Image.new("RGB", (80, 40), path.parent.name).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    assert user_files.read("images", Source(path=str(folder))).facts.shape == (3, 64, 32)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_the_error_names_a_file_that_is_not_an_image(folder, content):
    (folder / "red" / "bad.png").write_bytes(content)
    assert "'bad.png' is not a complete image. Repair or remove it." in refused("images", Source(path=str(folder)))


def test_the_error_names_a_truncated_image(folder):
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 60), dtype=np.uint8)).save(
        folder / "red" / "bad.png"
    )
    content = (folder / "red" / "bad.png").read_bytes()
    (folder / "red" / "bad.png").write_bytes(content[: len(content) // 2])
    assert "'bad.png' is not a complete image" in refused("images", Source(path=str(folder)))


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(folder, side):
    content = bytearray((folder / "red" / "0.png").read_bytes())
    content[16:24] = struct.pack(">II", side, side)  # width and height in a PNG's header, then their checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (folder / "red" / "bomb.png").write_bytes(content)
    assert "'bomb.png' has too many pixels" in refused("images", Source(path=str(folder)))


def test_links_to_a_place_outside_the_folder_are_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "elsewhere" / "secret.png")
    (folder / "red" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (folder / "green").symlink_to(tmp_path / "elsewhere")
    (folder / "red" / "again.png").symlink_to(folder / "red" / "0.png")
    facts = user_files.read("images", Source(path=str(folder))).facts
    assert facts.num_classes == 2 and facts.train_examples + facts.test_examples == 21


def test_the_error_names_a_link_to_itself(folder):
    (folder / "red" / "loop.png").symlink_to(folder / "red" / "loop.png")
    assert "its 'loop.png' cannot be read: Too many levels of symbolic links." in refused(
        "images", Source(path=str(folder))
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_the_error_names_an_image_without_permission(folder):
    source = Source(path=str(folder))
    (folder / "red" / "3.png").chmod(0)
    assert "its '3.png' is not readable for this user. Change its permissions." in refused("images", source)


def test_a_folder_without_classes_or_with_an_empty_one_is_refused(folder, tmp_path):
    (tmp_path / "flat").mkdir()
    assert "has no subfolders. Put the images of each class" in refused("images", Source(path=str(tmp_path / "flat")))
    (folder / "empty").mkdir()
    assert "its subfolder 'empty' has no image (avif, bmp," in refused("images", Source(path=str(folder)))
