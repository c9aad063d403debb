import numpy as np
import pytest
import torch
from PIL import Image

from audiox_diffusers.media import MediaError, load_image


def picture(height=5, width=7):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chw(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_rgb(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    image = load_image(tmp_path / "image.png")
    assert image.dtype == torch.uint8 and torch.equal(image, chw(picture()))


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(picture()).save(tmp_path / "image.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "image.png"), chw(np.rot90(picture(), -1)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr"])
def test_other_modes(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "YCbCr") else "image.png")
    # Pillow 12 cannot read the uncompressed YCbCr that it writes, and libtiff rounds its colours in another way.
    image.save(path, compression="tiff_deflate")
    difference = load_image(path).int() - chw(np.asarray(image.convert("RGB"))).int()
    assert difference.abs().max() <= (1 if mode == "YCbCr" else 0)


def test_transparency_is_composited_over_black(tmp_path):
    pixels = np.full((2, 3, 4), 200, np.uint8)
    pixels[..., 3] = [0, 128, 255]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png")[0, 0].tolist() == [0, 100, 200]


def test_sixteen_bit_grey(tmp_path):
    Image.fromarray(np.array([[0, 257 * 10, 65535]], np.uint16)).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png")[:, 0].tolist() == [[0, 10, 255]] * 3


def test_animation_gives_its_first_frame(tmp_path):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    first.save(tmp_path / "image.gif", save_all=True, append_images=[second])
    assert load_image(tmp_path / "image.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaError, match=r"empty\.png: the file is empty"):
        load_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(MediaError, match=r"text\.png: not a picture"):
        load_image(tmp_path / "text.png")
    Image.fromarray(picture(200, 200)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    with pytest.raises(MediaError, match=r"cut\.png: the picture cannot be decoded"):
        load_image(tmp_path / "cut.png")
