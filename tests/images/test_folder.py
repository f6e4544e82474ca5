"""Folders of images: what belongs to them, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from leaf_diffusion.images import ImageFolder
from leaf_diffusion.images.folder import number_order


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), "red").save(folder / name, format="PNG")


def test_numbers_in_number_order_and_hidden_ones_ignored(tmp_path: Path) -> None:
    put(tmp_path, *(f"{c}/{i}.png" for c in (10, 2, 1) for i in (11, 9)), ".ipynb_checkpoints/2.png", "2/._9.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert ImageFolder(tmp_path).names == ["1/9.png", "1/11.png", "2/9.png", "2/11.png", "10/9.png", "10/11.png"]


def test_the_order_is_one_of_parts_and_total() -> None:
    names = ["a/1.png", "a/b/1.png", "a-1/2.png", "a1.png", "a01.png", "a.png", "²/1.png", "B/1.png", "1.png", "1a.png"]
    backwards = list(reversed(names))
    assert sorted(names, key=number_order) == sorted(backwards, key=number_order)
    assert sorted(["n02.png", "n010.png", "n1.png"], key=number_order) == ["n1.png", "n02.png", "n010.png"]


def test_images_are_found_by_path_or_by_name(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "val/1.jpg", "val/2.jpg")
    found = ImageFolder(tmp_path)
    assert found.names[found.find("val/1.jpg")] == found.names[found.find("val\\1.jpg")] == "val/1.jpg"
    assert found.names[found.find("elsewhere/2.jpg")] == "val/2.jpg"
    assert found.load(found.find("2.jpg")).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match=r"'1\.jpg' stands 2 times in"):
        found.find("1.jpg")
    with pytest.raises(ValueError, match=r"'\.\./secret\.png' is not in"):
        found.find("../secret.png")


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(tmp_path)
    put(tmp_path, "a.png", "b.TIFF")
    with pytest.raises(ValueError, match=r"b\.TIFF: images of this format are not read \(1 such files\)"):
        ImageFolder(tmp_path)


def test_a_sub_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "b/1.png")
    scan = os.scandir

    def refusing(place: str) -> object:
        if Path(place).name == "b":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(PermissionError, match="b"):
        ImageFolder(tmp_path)
