"""Captions and prompts from every kind of file."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from leaf_diffusion.text.decoding import LONGEST_TEXT
from leaf_diffusion.text.files import first_of_each_image, read_texts

TWO = ["a red cat", "zwei „Katzen“, 猫"]


def texts(source: str | Path, **more: str | None) -> list[str]:
    return [row.text for row in read_texts(source, **more)]


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def parquet(path: Path, **columns: list[str]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def test_lines_keep_blanks_and_drop_the_byte_order_mark(tmp_path: Path) -> None:
    rows = read_texts(write(tmp_path / "a.txt", "\ufeffa red cat \n\nb\n"))
    assert [row.text for row in rows] == ["a red cat", "", "b"]
    assert rows[1].where.endswith("a.txt, line 2")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, TWO))),
        ("a.jsonl", "\n".join(json.dumps({"Prompt": text, "n": 1}) for text in TWO) + "\n\n"),
        ("a.json", TWO),
        ("a.json", [{"caption": text} for text in TWO]),
        ("a.csv", "id,caption\n1,a red cat\n2,\"zwei „Katzen“, 猫\"\n"),
        ("a.tsv", "Prompt\tCategory\tChallenge\na red cat\tAnimals\tBasic\nzwei „Katzen“, 猫\tAnimals\tBasic\n"),
        ("results.csv", "image_name| comment_number| comment\n1.jpg| 0| a red cat\n2.jpg| 0| zwei „Katzen“, 猫\n"),
        ("results.token", "1.jpg#0\ta red cat\n2.jpg#0\tzwei „Katzen“, 猫\n"),
    ],
)  # fmt: skip
def test_text_files(tmp_path: Path, name: str, content: object) -> None:
    column = "comment" if name == "results.csv" else None
    assert texts(write(tmp_path / name, content), column=column) == TWO


def test_coco_captions_know_their_images(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 8, "file_name": "8.jpg"}],
        "annotations": [
            {"image_id": 8, "id": 1, "caption": "one "},
            {"image_id": 7, "id": 2, "caption": "two"},
            {"image_id": 8, "id": 3, "caption": "three"},
        ],
    }
    rows = read_texts(write(tmp_path / "captions_val2017.json", content))
    assert [(row.text, row.image) for row in rows] == [("one", "8.jpg"), ("two", "7.jpg"), ("three", "8.jpg")]
    assert [row.text for row in first_of_each_image(rows)] == ["one", "two"]


def test_karpathy_split(tmp_path: Path) -> None:
    images = [
        {"split": split, "filename": f"{i}.jpg", "sentences": [{"raw": f"{split} {j}", "tokens": []} for j in range(2)]}
        for i, split in enumerate(("train", "test"))
    ]
    path = write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
    assert texts(path, split="test") == ["test 0", "test 1"]
    assert [row.text for row in first_of_each_image(read_texts(path))] == ["train 0", "test 0"]
    assert texts(path, split="val") == []


def test_webdataset_tars(tmp_path: Path) -> None:
    plain = tar(tmp_path / "0.tar", {"a.jpg": b"x", "a.txt": b"a red cat\n", "b.json": b'{"caption": "no"}'})
    tar(tmp_path / "1.tar", {"c.json": json.dumps({"caption": TWO[1]}).encode()})
    assert texts(plain) == TWO[:1]
    assert texts(plain, column="caption") == ["no"]
    assert texts(tmp_path / "*.tar") == TWO
    big = tar(tmp_path / "big.tar", {"a.txt": b"x" * (LONGEST_TEXT + 1)})
    with pytest.raises(ValueError, match="are no caption"):
        texts(big)
    with pytest.raises(ValueError, match="no tar archive"):
        texts(write(tmp_path / "no.tar", "not a tar"))


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=TWO, split=["train", "test"])
    assert texts(path) == TWO
    assert texts(path, split="test") == TWO[1:]
    assert texts(parquet(tmp_path / "b.parquet", TEXT_B=TWO), column="TEXT_B") == TWO
    with pytest.raises(ValueError, match="no Parquet file"):
        texts(write(tmp_path / "no.parquet", "hello"))


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_dict({"caption": TWO, "n": [1, 2]})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    assert texts(f"dataset:{tmp_path / 'one'}") == TWO
    assert texts(f"dataset:{tmp_path / 'both'}", split="test") == TWO[1:]
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        texts(f"dataset:{tmp_path / 'both'}", split="nowhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"caption": "x"}\n{oops\n', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", '{"caption": 3}\n', "expected a text, got int"),
        ("a.jsonl", "[1]\n", "expected a text or an object, got list"),
        ("a.csv", "a,b\n1,2\n", "there are: a, b. Name the column"),
        ("a.json", {"x": 1}, "expected a list, COCO"),
        ("a.token", "no tab here\n", "IMAGE#NUMBER"),
        ("a.jsonl", "[" * 50_000, r"a\.jsonl, line 1: no JSON that can be read \(nested too deeply\)"),
        ("a.jsonl", '{"caption": "x", "id": ' + "9" * 5000 + "}", r"a\.jsonl, line 1: no JSON that can be read"),
        ("a.jsonl", '{"caption": "a \\ud800 cat"}\n', r"a\.jsonl, line 1: half a surrogate pair at character 2"),
        ("a.json", {"annotations": [], "images": 3}, r"a\.json: expected COCO's images"),
        ("a.json", {"annotations": [], "images": ["x"]}, r"a\.json: expected COCO's images"),
        ("a.csv", 'id,caption\n1,"' + "x" * 200_000, r"a\.csv, line \d: no CSV .*quote left open"),
        ("a.csv", "id,caption\n1,a cat, on a mat\n", r"a\.csv, line 2: 3 cells under 2 columns; quote a text .*','"),
        ("a.tsv", "caption\tid\na\t1\nb\t2\tx\n", r"a\.tsv, line 3: 3 cells under 2 columns"),
        ("results.csv", "image| n| comment\n1.jpg| 0| a cat | a mat\n", r"results\.csv, line 2: 4 cells under 3"),
        ("a.csv", "caption,id,caption\na,1,b\n", r"a\.csv, line 1: the column 'caption' stands there twice"),
        ("a.csv", 'caption,id\n"a red cat,1\na blue cat,2\n', r"a\.csv, line 2: no CSV .*quote left open"),
        ("a.csv", 'caption,id\n"a" red cat,1\n', r"a\.csv, line 2: no CSV"),
        ("a.jsonl", '{"caption": "a", "caption": "b"}\n', r"a\.jsonl, line 1: .*'caption' stands twice in one object"),
        ("a.json", '[{"raw": "a", "x": {"y": 1, "y": 2}}]', r"a\.json: .*'y' stands twice in one object"),
        ("a.json", {"images": [{"sentences": [{"text": 1}]}]}, r"a\.json, item 0: expected a text, got int"),
        ("a.json", {"annotations": [{"image_id": 1}]}, r"a\.json, annotation 0: no column 'caption'"),
        ("a.json", {"annotations": ["x", 3]}, r"a\.json, annotation 1: expected a text or an object, got int"),
        ("a.json", "", r"a\.json: no JSON"),
        ("a.txt", "a red cat\na \0 cat", r"a\.txt, line 2: a NUL byte"),
        ("a.json", '["a \0 cat"]', r"a\.json: a NUL byte"),
        ("a.txt", "a cat\n" + "x" * (LONGEST_TEXT + 1), r"a\.txt, line 2: more than 1,048,576 bytes are no caption"),
        ("a.csv", "\x1b[2J,b\n1,2\n", r"there are: \\x1b\[2J, b\. Name"),
        (
            "a.tsv",
            "\t".join("abcdefghijklmnop") + "\n1\n",
            r"none of the columns .*there are: a, b, .*, l, \.\.\.\. Name",
        ),
    ],
)
def test_what_cannot_be_read_says_where(tmp_path: Path, name: str, content: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        texts(write(tmp_path / name, content))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32", "shift-jis", "cp1251"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.token"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    text = {"latin-1": "café", "cp1251": "кот"}.get(encoding, "a 猫")
    head = {"a.csv": "caption\n", "a.tsv": "caption\n", "a.token": "1.jpg#0\t"}.get(name, "")
    content = f'["{text}"]' if name == "a.json" else f'"{text}"' if name == "a.jsonl" else head + text
    (tmp_path / name).write_bytes(content.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}(, line \d)?: (not UTF-8|a NUL byte)"):
        texts(tmp_path / name)


def test_what_loses_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.csv", "caption,,\na red cat,,,\nb\n")) == ["a red cat", "b"]
    rows = read_texts(write(tmp_path / "a.json", {"annotations": [{"caption": "a"}, {"caption": "b", "image_id": 7}]}))
    assert [(row.text, row.image) for row in rows] == [("a", None), ("b", "7")]  # two unknown images are not one


def test_a_json_file_too_large_to_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf_diffusion.text.readers.documents.LONGEST_JSON", 10)
    with pytest.raises(ValueError, match=r"a\.json: more than 10 bytes are too many .* write JSONL"):
        texts(write(tmp_path / "a.json", '["a red cat"]'))


def test_missing_files_bytes_and_columns(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        texts(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="no file fits"):
        texts(tmp_path / "*.jsonl")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        texts(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match="no column 'title'; there are: caption"):
        texts(write(tmp_path / "a.jsonl", '{"caption": "x"}'), column="title")


def test_damaged_archives_and_parquet_files_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:  # a compressed one under a plain name
        member = tarfile.TarInfo("a.txt")
        member.size = 3_000
        archive.addfile(member, io.BytesIO(bytes(32 + i * i % 89 for i in range(3_000))))
    whole = (tmp_path / "a.tar").read_bytes()
    for content in (whole[:60], whole[:40] + b"\xff" * 9 + whole[49:]):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar is no tar archive that can be read"):
            texts(tmp_path / "a.tar")
    path = parquet(tmp_path / "a.parquet", text=TWO)
    page = path.read_bytes()
    path.write_bytes(page[:8] + b"\xff" * 12 + page[20:])
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file that can be read"):
        texts(path)
