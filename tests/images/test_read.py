"""Image files of every kind become the RGB image that a person sees, or are refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from leaf_diffusion.images import UnreadableImageError, decode_image, png_ok, read, read_image, to_rgb, whole_png

LEFT, RIGHT = (200, 100, 50), (0, 0, 0)


def same(one: Image.Image, other: Image.Image | np.ndarray) -> bool:
    """The same pixels, and as many of them."""
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def image() -> Image.Image:
    """60 x 40, the left half light."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = LEFT
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_orientation_of_a_camera(name: str, image: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right: what was left is above
    image.save(tmp_path / name, None, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    found = read_image(tmp_path / name)
    assert (found.size, found.mode) == ((40, 60), "RGB")
    assert np.abs(np.asarray(found)[5, 20].astype(int) - LEFT).max() < 6
    assert np.abs(np.asarray(found)[55, 20].astype(int) - RIGHT).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)).save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert same(found, ImageOps.exif_transpose(stored))
    assert same(to_rgb(found), found) and not found.info  # and not turned again


def test_damaged_exif_data_spoil_no_image(image: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    image.save(tmp_path / "a.jpg", exif=exif)
    whole, rng = (tmp_path / "a.jpg").read_bytes(), np.random.default_rng(0)
    start, end = whole.index(b"Exif") + 6, whole.index(b"Exif") + len(exif.tobytes())
    sizes = set()
    for _ in range(2000):
        spoiled = bytearray(whole)
        for at in rng.integers(start, end, 2):
            spoiled[at] = rng.integers(256)
        (tmp_path / "b.jpg").write_bytes(spoiled)
        sizes.add(read_image(tmp_path / "b.jpg").size)
    assert sizes == {(60, 40), (40, 60)}


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png"))
    assert found.shape == (4, 256, 3)
    assert np.array_equal(found[0, :, 0], np.arange(256))
    assert same(to_rgb(Image.fromarray(ramp.astype(np.int32))), found)
    assert same(to_rgb(Image.fromarray(ramp.astype(">u2"))), found)
    image = Image.fromarray(ramp)
    image.info["transparency"] = 0  # as of a file with this grey marked
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("channels", "values", "seen"),
    [
        (2, (65535, 0, 0x8080), (255, 0, 128)),  # RGB
        (6, (65535, 0, 0, 0x3333), (255, 204, 204)),  # RGBA, a fifth there
        (4, (0, 0x3333), (204, 204, 204)),  # LA
        (0, (0x8080,), (128, 128, 128)),
    ],
)
def test_sixteen_bits_a_channel(
    channels: int, values: tuple[int, ...], seen: tuple[int, int, int], tmp_path: Path
) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, channels, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == seen


@pytest.mark.parametrize("values", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 1 << 20, np.int32)])
def test_values_without_a_scale_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no scale"):
        to_rgb(Image.fromarray(values))


def test_transparency_stands_on_white_unless_told(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0] = 255  # red below all of it
    pixels[2:6, 2:6, 3] = 255
    pixels[0, 0, 3] = 51  # a fifth
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert [found.getpixel(at) for at in ((7, 7), (3, 3), (0, 0))] == [(255,) * 3, (255, 0, 0), (255, 204, 204)]
    assert read_image(tmp_path / "a.png", ground=(0, 0, 255)).getpixel((7, 7)) == (0, 0, 255)
    image.convert("LA").save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").getpixel((7, 7)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    found = read_image(tmp_path / "p.png")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_other_modes(image: Image.Image, tmp_path: Path) -> None:
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    pixel = read_image(tmp_path / "cmyk.jpg").getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert np.abs(np.subtract(pixel, LEFT)).max() < 6
    for mode in ("1", "L", "P"):
        image.convert(mode).save(tmp_path / "a.png")
        found = read_image(tmp_path / "a.png")
        assert (found.mode, found.getpixel((55, 5))) == ("RGB", RIGHT)
    image.save(tmp_path / "a.bmp")
    assert same(read_image(tmp_path / "a.bmp"), image)
    assert decode_image(tmp_path / "a.png").mode == "P"


def test_an_animation_is_its_first_frame(image: Image.Image, tmp_path: Path) -> None:
    blue = Image.new("RGB", image.size, (0, 0, 255))
    for name in ("a.webp", "a.png"):
        image.save(tmp_path / name, save_all=True, append_images=[blue], lossless=True)
        assert same(read_image(tmp_path / name), image)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "TGA", "EPS", "ICO"])
def test_a_name_does_not_choose_the_decoder(
    kind: str, image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.save(tmp_path / "a.png", format=kind)
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(UnreadableImageError, match=r"a\.png is no PNG, JPEG, WEBP, BMP image inside"):
        read_image(tmp_path / "a.png")


def test_damage_size_and_absence_name_the_file(
    image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        image.save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(UnreadableImageError, match=rf"{name} holds no whole image"):
            read_image(tmp_path / name)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImageError, match=r"empty\.png is no PNG"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match=r"pipe\.png"):  # and it is not waited for
        read_image(tmp_path / "pipe.png")
    image.save(tmp_path / "big.png")
    monkeypatch.setattr(read, "MAX_PIXELS", 2_000)
    with pytest.raises(UnreadableImageError, match=r"big\.png: 2,400 pixels, more than 2,000"):
        read_image(tmp_path / "big.png")
    assert not png_ok(tmp_path / "big.png")


def test_bytes_that_were_read_are_decoded_and_not_the_file(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert same(decode_image(tmp_path / "gone.png", data=data), image)
    assert same(whole_png(tmp_path / "gone.png", data), image)
    with pytest.raises(UnreadableImageError, match=r"gone\.png is no whole PNG"):
        whole_png(tmp_path / "gone.png", data[:-1])
    with pytest.raises(UnreadableImageError, match=r"gone\.png is no PNG image inside"):
        decode_image("gone.png", formats=["PNG"], data=b"GIF89a")


def test_a_file_that_may_not_be_read_is_told_so(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "open", raiser(PermissionError(13, "Permission denied")))
        with pytest.raises(UnreadableImageError, match=r"a\.png cannot be read: Permission denied"):
            read_image(tmp_path / "a.png")


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, format="PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableImageError, match=r"bomb\.png: "):
        read_image(tmp_path / "bomb.png")
