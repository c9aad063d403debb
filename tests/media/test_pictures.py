"""A picture is the same from a file, as a Pillow image and as a video."""

import numpy as np
import pytest
import torch
from PIL import Image

from audiox_diffusers.media import MediaError, load_image, load_video, media_duration, save_video
from audiox_diffusers.media.image import to_array
from audiox_diffusers.pipelines.inputs import read_image, read_video

RAMP = np.indices((12, 16))[0].astype(np.uint8) * 20


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def transparent():
    pixels = np.full((12, 16, 4), 255, np.uint8)
    pixels[..., 3] = RAMP
    return Image.fromarray(pixels)


def palette():
    image = Image.new("P", (16, 12), 0)
    image.putpalette([255, 255, 255, 255, 0, 0])
    image.paste(1, (4, 4, 8, 8))
    return image


PICTURES = {
    "turned.jpg": lambda path: Image.fromarray(RAMP).save(path, exif=exif(6)),
    "mirrored.png": lambda path: Image.fromarray(RAMP).save(path, exif=exif(5)),
    "upside-down.webp": lambda path: Image.fromarray(RAMP).convert("RGB").save(path, exif=exif(3), lossless=True),
    "turned.tiff": lambda path: Image.fromarray(RAMP).save(path, exif=exif(8), compression="tiff_lzw"),
    "transparent.png": lambda path: transparent().save(path),
    "transparent.webp": lambda path: transparent().save(path, lossless=True),
    "transparent.gif": lambda path: palette().save(path, transparency=0),
    "grey and alpha.png": lambda path: transparent().convert("LA").save(path),
    "16-bit.png": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "16-bit.tiff": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "cmyk.jpg": lambda path: Image.fromarray(RAMP).convert("CMYK").save(path),
    "plain.qoi": lambda path: Image.fromarray(RAMP).convert("RGB").save(path),
}


@pytest.mark.parametrize("name", PICTURES)
def test_all_ways_give_the_same_picture(tmp_path, name):
    path = tmp_path / name
    PICTURES[name](path)
    picture = load_image(path)
    with Image.open(path) as image:
        assert torch.equal(torch.from_numpy(to_array(image)).permute(2, 0, 1), picture)
        size = tuple(picture.shape[1:])
        expected = picture[None] / 255
        assert torch.equal(read_image(image, size), expected)
        assert torch.equal(read_video([image, image], 5, 2, size), expected.repeat(2, 1, 1, 1))
    assert torch.equal(read_image(path, size), expected)
    assert torch.equal(load_video(path), picture[None])
    assert media_duration(path) == 0.04


def test_orientation_is_applied_in_all_ways(tmp_path):
    for orientation in range(1, 9):
        Image.fromarray(RAMP).save(tmp_path / "picture.png", exif=exif(orientation))
        assert load_video(tmp_path / "picture.png").shape[-2:] == ((12, 16) if orientation < 5 else (16, 12))


def frames_of(colours):
    return [Image.new("RGB", (16, 12), colour) for colour in colours]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_keep_their_timing(tmp_path, suffix):
    first, *others = frames_of([(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    path = tmp_path / f"animation{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=[100, 300, 200], **options)
    frames = load_video(path, fps=10, duration=None)
    assert frames.amax(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 1, 1, 2, 2]
    assert media_duration(path) == pytest.approx(0.6)
    assert load_video(path, fps=10, start=0.4, duration=0.1)[0, 2].min() > 200

    save_video(tmp_path / "clip.mp4", path, torch.zeros(1, 8000), 16000)
    copied = load_video(tmp_path / "clip.mp4", fps=10, duration=None)
    assert copied.amax(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1, 1, 1, 2, 2]


def test_frames_without_a_duration_last_a_tenth_of_a_second(tmp_path):
    first, *others = frames_of([(250, 0, 0), (0, 250, 0)])
    first.save(tmp_path / "fast.gif", save_all=True, append_images=others, duration=0)
    assert media_duration(tmp_path / "fast.gif") == pytest.approx(0.2)


def test_pages_of_a_tiff_are_no_animation(tmp_path):
    first, *others = frames_of([(250, 0, 0), (0, 250, 0)])
    first.save(tmp_path / "pages.tiff", save_all=True, append_images=others)
    assert load_video(tmp_path / "pages.tiff", fps=100).shape[0] == 4


def test_damaged_animation_ends_early(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), dtype=np.uint8)
    first, *others = (Image.fromarray(frame) for frame in noise)
    first.save(tmp_path / "whole.gif", save_all=True, append_images=others, duration=100)
    content = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) * 3 // 4])
    frames = load_video(tmp_path / "cut.gif", fps=10)
    assert torch.equal(frames, load_video(tmp_path / "whole.gif", fps=10)[: len(frames)]) and len(frames) == 3
    assert len(caplog.records) == 1 and "animation is damaged" in caplog.text
    (tmp_path / "cut.gif").write_bytes(content[:400])
    with pytest.raises(MediaError, match="cannot be decoded|or cut off"):
        load_video(tmp_path / "cut.gif")
