import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leaf_diffusion.runs import RunFolderError, RunSpec, RunStore, files, image_name, load_run, log, png_ok
from leaf_diffusion.runs.images import damaged_images, with_digests
from leaf_diffusion.runs.records import OfImage, Record

SPEC = RunSpec({"attack": "charmer", "k": [1, 2], "encoders": {"original": "aa", "leaf": "bb"}})


class Unit(Record):
    unit: str = "attack"
    score: float | None = None
    note: str | None = None
    text: str | None = None


def record(unit: str, **values: object) -> Unit:
    return Unit.model_validate({"unit": "attack", "id": unit, **values})


def test_a_killed_process_loses_nothing_and_resuming_is_a_set_difference(tmp_path: Path) -> None:
    program = (
        "import os, sys; from leaf_diffusion.runs import RunSpec, RunStore\n"
        "from leaf_diffusion.runs.records import Record\n"
        f"store = RunStore.open(sys.argv[1], RunSpec({dict(SPEC.settings)!r}), fsync_seconds=3600)\n"
        "for i in range(50): store.append('units', Record(id=f'unit {i}', text='\\u2028 é'))\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False).returncode == -9
    with RunStore.open(tmp_path / "run", SPEC, command="again") as store:
        assert store.resumed
        assert {f"unit {i}" for i in range(60)} - store.done("units") == {f"unit {i}" for i in range(50, 60)}
        assert store.records("units", Unit)[0].text == "\u2028 é"
    environment = load_run(tmp_path / "run").environment
    assert "reopened" in environment and str(environment["reopened"]).count("'command': 'again'") == 1


def test_a_duplicate_is_ignored_and_the_first_kept(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        assert store.append("units", record("a", score=1))
        assert not store.append("units", record("a", score=2))
        assert store.records("units", Unit) == [record("a", score=1)]
    path = tmp_path / "records" / "units.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "a", "score": 3}\n')
    assert load_run(tmp_path).records("units", Unit) == [record("a", score=1)]


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 40))
def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    with RunStore.open(folder, SPEC) as store:
        for i in range(3):
            store.append("units", record(f"unit {i}", note="x" * 10))
    path = folder / "records" / "units.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert [r.id for r in load_run(folder).records("units", Unit)] == ["unit 0", "unit 1"]
    with RunStore.open(folder, SPEC) as store:
        assert store.done("units") == {"unit 0", "unit 1"}
        assert store.torn == {"units": len(data) // 3 - cut}
        store.append("units", record("unit 2", note="x" * 10))
    assert path.read_bytes() == data


def test_zeros_left_by_a_power_cut_are_cut_too(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        store.append("units", record("a"))
    path = tmp_path / "records" / "units.jsonl"
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    with RunStore.open(tmp_path, SPEC) as store:
        assert (store.done("units"), store.torn) == ({"a"}, {"units": 100})


def test_damage_in_the_middle_names_the_line(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        for unit in "abc":
            store.append("units", record(unit))
    path = tmp_path / "records" / "units.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-3], lines[2], ""]))
    with pytest.raises(ValueError, match=r"units\.jsonl, line 2 is damaged"):
        RunStore.open(tmp_path, SPEC)


def test_the_folder_of_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    RunStore.open(tmp_path, SPEC).close()
    other = RunSpec({"attack": "leaf", "k": [1, 2], "encoders": {"original": "aa", "leaf": "cc"}, "new": 1})
    with pytest.raises(RunFolderError) as error:
        RunStore.open(tmp_path, other)
    assert 'attack: "charmer" there, "leaf" asked' in str(error.value)
    assert 'encoders.leaf: "bb" there, "cc" asked' in str(error.value)
    assert "new: (absent) there, 1 asked" in str(error.value)
    assert "\n  k: " not in str(error.value)


def test_a_foreign_folder_and_a_file_are_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(RunFolderError, match=r"not empty and no run folder \(it holds holiday.jpg\)"):
        RunStore.open(tmp_path, SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
    with pytest.raises(RunFolderError, match="file stands where a folder is needed"):
        RunStore.open(tmp_path / "holiday.jpg", SPEC)
    with pytest.raises(RunFolderError, match="part of the path is a file"):
        RunStore.open(tmp_path / "holiday.jpg" / "run", SPEC)


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    first = RunStore.open(tmp_path, SPEC)
    with pytest.raises(RunFolderError, match=f"being written by process {os.getpid()}"):
        RunStore.open(tmp_path, SPEC)
    del first  # forgotten, not closed
    RunStore.open(tmp_path, SPEC).close()
    closed = RunStore.open(tmp_path, SPEC)
    closed.close()
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        closed.done("units")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full"), (errno.EACCES, "may not write")]
)
def test_an_unwritable_folder_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(fd: int, data: bytes) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "write_all", refuse)
    with pytest.raises(RunFolderError, match=said) as error:
        RunStore.open(tmp_path / "run", SPEC)
    assert error.value.errno == number
    monkeypatch.undo()
    RunStore.open(tmp_path / "run", SPEC).close()  # nothing in the way of a second try


def test_a_disk_that_fills_up_leaves_whole_lines_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 150

    def write_some(fd: int, data: bytes) -> None:
        nonlocal room
        part = data[:room]
        os.write(fd, part)
        room -= len(part)
        if len(part) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")

    store = RunStore.open(tmp_path, SPEC)
    monkeypatch.setattr(log, "write_all", write_some)
    monkeypatch.setattr(files, "write_all", write_some)
    store.append("units", record("unit 0"))
    with pytest.raises(RunFolderError, match="disk is full; free some space, then run the same command again"):
        store.append("units", record("unit 1", note="x" * 200))
    with pytest.raises(RunFolderError, match="disk is full"):
        store.save_image(image_name("a"), Image.new("RGB", (8, 8)))
    done = store.done("units")
    assert done == {"unit 0"}
    assert list((tmp_path / "images").iterdir()) == []
    room = 10_000
    for i in range(9):
        store.append("units", record(f"unit {i}"))
    store.close()
    text = (tmp_path / "records" / "units.jsonl").read_text()
    assert [json.loads(line)["id"] for line in text.splitlines()] == [f"unit {i}" for i in range(9)]


def test_a_torn_line_that_could_not_be_cut_is_cut_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def half(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunStore.open(tmp_path, SPEC) as store:
        store.append("units", record("a"))
        for failing in (half, interrupted):
            with monkeypatch.context() as patch:
                patch.setattr(os, "ftruncate", refuse)
                patch.setattr(log, "write_all", failing)
                with pytest.raises((RunFolderError, KeyboardInterrupt)):
                    store.append("units", record("b"))
        assert store.append("units", record("b"))
    assert [r.id for r in load_run(tmp_path).records("units", Unit)] == ["a", "b"]
    assert (tmp_path / "records" / "units.jsonl").read_bytes().count(b"\n") == 2


def interrupted(fd: int, data: bytes) -> None:
    os.write(fd, data)
    raise KeyboardInterrupt


def test_what_a_killed_writer_left_is_swept_on_reopening(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        kept = store.save_image(image_name("a"), Image.new("RGB", (4, 4)))
    left = [tmp_path / "images" / ".abc.png.x1.tmp", tmp_path / ".probe-9.tmp", tmp_path / ".results.json.x1.tmp"]
    for path in left:
        path.write_bytes(b"half")
    RunStore.open(tmp_path, SPEC).close()
    assert not any(path.exists() for path in left)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [Path(kept).name]


def test_an_unreadable_folder_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunFolderError, match=r"reading .* failed: this user may not"):
        RunStore.open(tmp_path, SPEC)


def test_a_command_line_of_undecodable_bytes_is_recorded(tmp_path: Path) -> None:
    RunStore.open(tmp_path, SPEC, command="evaluate --prompts caf\udce9.txt").close()
    assert load_run(tmp_path).environment["command"] == "evaluate --prompts caf\\udce9.txt"


def test_images_are_whole_or_known_to_be_damaged(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        image = Image.effect_noise((32, 32), 50).convert("RGB")
        paths = [store.save_image(image_name(unit), image) for unit in ("a", "../../b", "c")]
        drawn = [with_digests(tmp_path, OfImage(id=path, image=path)) for path in paths]

        def damaged() -> list[str]:
            return [path for each in drawn for path in damaged_images(tmp_path, each)]

        assert damaged() == []
        assert store.load_image(paths[1]).tobytes() == image.tobytes()
        whole = (tmp_path / paths[0]).read_bytes()
        (tmp_path / paths[0]).write_bytes(whole[:-30])
        (tmp_path / paths[2]).unlink()
        assert damaged() == [paths[0], paths[2]]
        with pytest.raises(RunFolderError, match="missing or damaged"):
            store.load_image(paths[0])
        store.save_image(paths[0], image)
        assert damaged() == [paths[2]]
        for bad in ("../evil.png", "images/../../x.png", "/etc/passwd", "images/evil.exe"):
            with pytest.raises(ValueError, match="hexadecimal"):
                store.save_image(bad, image)
            with pytest.raises(ValueError, match="hexadecimal"):
                store.load_image(bad)


def test_png_ok_sees_every_kind_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.effect_noise((16, 16), 50).save(path)
    data = path.read_bytes()
    assert png_ok(path)
    for cut in (0, 4, 20, len(data) // 2, *range(len(data) - 20, len(data))):
        path.write_bytes(data[:cut])
        assert not png_ok(path), cut
    path.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    assert not png_ok(path)
    short = b"cHRM" + b"\0" * 5  # a chunk that is whole and too short
    chunk = (5).to_bytes(4, "big") + short + zlib.crc32(short).to_bytes(4, "big")
    path.write_bytes(data[:33] + chunk + data[33:])
    assert not png_ok(path)
    path.write_bytes(data[:33] + data[-12:])  # no pixels at all
    assert not png_ok(path)
    Image.new("RGB", (4, 4)).save(path, format="JPEG")
    assert not png_ok(path)
    assert not png_ok(tmp_path / "absent.png")


def test_no_bit_of_a_image_changes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    image = Image.effect_noise((9, 9), 50)
    image.save(path)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        assert not png_ok(path), bit


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, SPEC) as store:
        with pytest.raises(ValueError, match='needs an "id"'):
            store.append("units", record(""))
        with pytest.raises(ValueError, match="'a' does not fit into JSON"):
            store.append("units", Record.model_validate({"id": "a", "x": float("nan")}))
        with pytest.raises(ValueError, match="kind of record"):
            store.append("../attacks", record("a"))
        assert store.append("units", record("a", score=0.5))
