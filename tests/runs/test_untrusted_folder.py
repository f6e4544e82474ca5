"""A run folder that somebody else made: no link is followed, no pipe opened, no image exchanged, nothing unseen is shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from leaf_diffusion.runs import RunFolderError, RunResults, RunSpec, RunStore, image_name, load_run, results_csv
from leaf_diffusion.runs.images import damaged_images, is_recorded
from leaf_diffusion.runs.progress import read_progress, status
from leaf_diffusion.runs.records import ImageRecord, Record
from leaf_diffusion.runs.results import COLUMNS, ResultRow

SPEC = RunSpec({"attack": "charmer"})


def drawn(store: RunStore, unit: str, colour: str) -> str:
    path = store.save_image(image_name(unit), Image.new("RGB", (8, 8), colour))
    store.append("images", ImageRecord.model_validate({
        "id": unit, "prompt_id": "p", "prompt": "a cat", "original": "a cat", "given": "a cat", "encoder": "leaf",
        "protocol": "clean", "source": None, "k": 0, "seed_index": 0, "image": path, "truncated": False,
    }))  # fmt: skip
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.fsync", lambda fd: None)
    with RunStore.open(tmp_path / "run", SPEC) as store:
        drawn(store, "a", "red")
        drawn(store, "b", "blue")
        store.begin("images", {"images": 2})
        store.write_results(RunResults(rows=[]))
    return tmp_path / "run"


def everything(run: Path) -> None:
    found = load_run(run)
    found.records("images", ImageRecord)
    _ = found.results
    read_progress(run)
    status(run)
    with RunStore.open(run, SPEC) as store:
        store.append("images", store.records("images", ImageRecord)[0].model_copy(update={"id": "c"}))
        store.load_image(image_name("a"))


def link(path: Path, aside: Path) -> None:
    path.rename(aside)
    path.symlink_to(aside)


def pipe(path: Path, aside: Path) -> None:
    path.rename(aside)
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [link, pipe])
@pytest.mark.parametrize(
    "name",
    ["spec.json", "results.json", "progress.json", "environment.json", "records/images.jsonl", "records/.writer-0",
     ".lock", "records", "images", image_name("a")],
)  # fmt: skip
def test_no_link_is_followed_and_no_pipe_opened(
    run: Path, tmp_path: Path, name: str, spoil: Callable[[Path, Path], None]
) -> None:
    everything(run)
    aside = tmp_path / "aside"
    spoil(run / name, aside)
    before = aside.read_bytes() if aside.is_file() else b""
    with pytest.raises((RunFolderError, ValueError)) as error:
        everything(run)
    assert str(run / name) in str(error.value)
    assert before == (aside.read_bytes() if aside.is_file() else b"")


def test_a_link_is_not_written_through(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("results.json", "results.csv", "images/aaaaaaaaaaaa.png"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / "mine")
    with RunStore.open(run, SPEC) as store:
        store.write_results(RunResults(rows=[]))
        store.save_image("images/aaaaaaaaaaaa.png", Image.new("RGB", (4, 4)))
        (run / "records" / "notes.jsonl").symlink_to(tmp_path / "mine")
        with pytest.raises(RunFolderError, match="link"):
            store.append("notes", Record(id="a"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_exchanged_images_are_found_where_they_are_read(run: Path) -> None:
    one, other = (run / image_name(unit) for unit in "ab")
    with RunStore.open(run, SPEC) as store:
        records = {record.id: record for record in store.records("images", ImageRecord)}
        assert records["a"].sha256 != records["b"].sha256
        assert records["a"].size == one.stat().st_size
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        with pytest.raises(RunFolderError, match=rf"{one.name}, read, is not the image that was recorded"):
            store.load_image(image_name("a"))
        assert not any(is_recorded(run / each.image, each) for each in records.values()) and records
        with pytest.raises(RunFolderError, match="drawn again, is not the image"):
            store.save_image(image_name("a"), Image.new("RGB", (8, 8), "green"))
        store.save_image(image_name("a"), Image.new("RGB", (8, 8), "red"))
        assert store.load_image(image_name("a")).getpixel((0, 0)) == (255, 0, 0)


def test_a_resume_looks_at_sizes_and_ends_and_decodes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / image_name("a")
    whole = path.read_bytes()

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", decode)
    with RunStore.open(run, SPEC) as store:
        (first,) = (each for each in store.records("images", ImageRecord) if each.id == "a")
        assert damaged_images(run, first) == []
        assert is_recorded(path, first)  # as the report asks: by its sha256
        for damage in (whole[:-1], whole[1:], whole[:30] + whole[31:], b"", whole + b"x"):
            path.write_bytes(damage)
            assert damaged_images(run, first) == [image_name("a")]
    path.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    monkeypatch.undo()
    assert damaged_images(run, first) == []
    assert not is_recorded(path, first)


def test_what_is_not_seen_reaches_no_message_and_no_table(run: Path) -> None:
    with RunStore.open(run, SPEC):
        (run / ".lock").write_text("\x1b[2J\u202eevil")
        with pytest.raises(RunFolderError) as error:
            RunStore.open(run, SPEC)
    assert r"\x1b[2J\u202eevil" in str(error.value)
    with pytest.raises(RunFolderError) as error:
        RunStore.open(run, RunSpec({"attack": "charmer", "\u202ekey": "\x1b\u2066"}))
    assert str(error.value).replace("\n", "").isprintable()
    row = ResultRow.model_validate({
        **dict.fromkeys(COLUMNS), "encoder": "a\x1b[2J\u202eb\nc", "protocol": "clean", "metric": "drift", "n": 1, "seeds": 1,
    })  # fmt: skip
    assert r"a\x1b[2J\u202eb\nc" in results_csv([row])


def test_a_run_of_the_first_version_is_not_read_without_its_images(tmp_path: Path) -> None:
    RunStore.open(tmp_path, RunSpec({"attack": "charmer"})).close()
    (tmp_path / "records" / "pictures.jsonl").write_text("")
    with pytest.raises(
        ValueError, match=r"pictures\.jsonl: a run of version 0\.1\.0.*rename the file to images\.jsonl"
    ):
        load_run(tmp_path)
