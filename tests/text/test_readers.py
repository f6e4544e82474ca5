"""What people really bring, read whole or refused: layouts, line ends, marks, lists, ids, patterns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaf_diffusion.evaluation.prompts import from_file
from leaf_diffusion.text.decoding import shows
from leaf_diffusion.text.files import first_of_each_image, read_texts
from leaf_diffusion.text.readers.rows import LONGEST_PROMPT

Rows = list[tuple[str, str | None]]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rows(path: Path | str) -> Rows:
    return [(row.text, row.image) for row in read_texts(path)]


FLICKR = [("Two dogs .", "1.jpg"), ('A " red " boat', "1.jpg"), ("A child", "2.jpg")]
TWO: Rows = [("a red cat", None), ("a blue dog", None)]


def test_a_text_of_which_nothing_shows_is_blank(tmp_path: Path) -> None:
    lines = ["a red cat", "\u200b\u200d", "\u202e\u2060", "\u3164", "a\u200b", "👩\u200d🚀"]
    file = put(tmp_path / "captions.txt", "\n".join(lines))
    assert [text for text, _ in rows(file)] == ["a red cat", "", "", "", "a\u200b", "👩\u200d🚀"]
    with pytest.raises(ValueError, match="line 2: an empty prompt; remove the line \\(3 such lines\\)"):
        from_file(file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", 'image,caption\n1.jpg,Two dogs .\n1.jpg,"A "" red "" boat"\n2.jpg,A child\n'),
        ("Flickr8k.token.txt", '1.jpg#0\tTwo dogs .\n1.jpg#1\tA " red " boat\n2.jpg#0\tA child\n'),
        ("results_20130124.token", '1.jpg#0\tTwo dogs .\n1.jpg#1\tA " red " boat\n2.jpg#0\tA child\n'),
        ("results.csv", 'image_name| comment_number| comment\n1.jpg| 0| Two dogs .\n1.jpg| 1| A " red " boat\n2.jpg| 0   A child\n'),
        ("flickr_annotations_30k.csv", 'raw,sentids,filename,img_id\n"[""Two dogs ."", ""A \\"" red \\"" boat""]","[0, 1]",1.jpg,0\n'
         '"[\'A child\']",[2],2.jpg,1\n'),
        ("f.jsonl", '{"caption": "[\'Two dogs .\' \'A \\" red \\" boat\']", "image": {"path": "1.jpg"}}\n'
         '{"TEXT": "A child", "filename": "2.jpg", "image_id": 7}\n'),
        ("a.data", json.dumps({"file_name": "1.jpg", "captions": [FLICKR[0][0], FLICKR[1][0]]}) + "\r"
         + json.dumps({"file_name": "2.jpg", "captions": ["A child"]})),
    ],
)  # fmt: skip
def test_layouts_that_circulate(tmp_path: Path, name: str, content: str) -> None:
    found = read_texts(put(tmp_path / name, content))
    assert [(row.text, row.image) for row in found] == FLICKR
    assert [row.text for row in first_of_each_image(found)] == ["Two dogs .", "A child"]
    packed = put(tmp_path / f"{name}.gz", gzip.compress(b"\xef\xbb\xbf" + content.encode()))
    assert rows(packed) == FLICKR


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.txt", ["a red cat", "\ufeffa blue dog"]),
        ("a.csv", ["prompt;id", "a red cat;1", "\ufeffa blue dog;2"]),
        ("a.csv", ["sep=,", "id,Prompt", "1,a red cat", "2,\ufeffa blue dog"]),
        ("a.jsonl", ['{"text": "a red cat"}', '\ufeff"a blue dog"']),
        ("a.json", ['{"text": "a red cat"}', '{"text": "a blue dog"}']),
        ("a.json", ["[", '"a red cat",', '"a blue dog"]']),
        ("a.txt", ['{"text": "a red cat"}', '{"text": "a blue dog"}']),
    ],
)
def test_line_ends_and_byte_order_marks(tmp_path: Path, name: str, lines: list[str], end: str) -> None:
    assert rows(put(tmp_path / name, end.join(lines) + end)) == TWO
    assert rows(put(tmp_path / name, "\ufeff" + end.join(lines))) == TWO


def test_a_line_end_on_the_border_of_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf_diffusion.text.decoding.LONGEST_TEXT", 4)
    for end in ("\n", "\r\n", "\r"):
        for lines in (["a", "bcd", "", "ef"], ["abc", "", "", "d"], ["abcd", "e"]):
            assert [text for text, _ in rows(put(tmp_path / "a.txt", end.join(lines) + end))] == lines


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", 'prompt\n"Welcome reads the sign\nb\nc says bye"\nd\n', r"a\.csv, line 2: no CSV .* ends in its line"),
        ("a.tsv", 'prompt\tid\n"Welcome\t1\nb\t2\n"Bye\t3\n', r"a\.tsv, line 2: no CSV"),
        ("a.csv", "id,caption\n1\n", r"a\.csv, line 2: 1 cells under 2 columns"),
        ("a.csv", "id,caption\n1,a\nid,caption\n2,b\n", r"a\.csv, line 3: the header stands there again"),
        ("a.csv", "caption\n[['a']]\n", r"a\.csv, line 2: it looks like a list"),
        ("a.csv", "id;x\n1;2\n", r"a\.csv, line 1: none of the columns"),
        ("a.json", '{"annotations": [], "images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "two images, 'a' and 'b'"),
        ("a.json", '{"annotations": [{"caption": "a"}], "images": [{"id": 1}]}', "annotation 0: it has no image_id"),
        ("a.json", '{"annotations": [{"caption": "a", "image_id": 2}], "images": [{"id": 1}]}', "no image has the id '2'"),
        ("a.json", '{"images": [{"filename": "1", "raw": "a"}, {"filename": "1", "raw": "b"}]}', r"item 1: the id .*two images"),
        ("a.jsonl", '{"image_id": 1, "image": "a", "text": "a"}\n{"image_id": 1, "image": "b", "text": "b"}', "line 2: the id .*two images"),
        ("a.txt.gz", gzip.compress(b"a cat\n" * 99, mtime=0)[:-9], r"a\.txt\.gz: its compression \(gzip\) is damaged"),
        ("a.txt", b"BZh91AY&SY\xff\x00", "compressed, bzip2; unpack"),
        ("a.txt", "a cat\n".encode("utf-16"), "line 1: not UTF-8 but UTF-16; convert it: iconv"),
        ("a.json", '["a"]'.encode("utf-32"), "not UTF-8 but UTF-32"),
    ],
)  # fmt: skip
def test_what_would_lose_something_is_refused(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_texts(put(tmp_path / name, content))


def test_texts_that_only_look_like_something_else(tmp_path: Path) -> None:
    lines = ["[masterpiece] a cat", "{red|blue} dog", "a caption, an image", "[a], [b]", 'he says "hi', "['a']"]
    assert [text for text, _ in rows(put(tmp_path / "a.txt", "\n".join(lines)))] == lines
    assert rows(put(tmp_path / "b.csv", "caption\n[a red cat]\n[1]\n[]\n")) == [("[a red cat]", None), ("[1]", None), ("[]", None)]  # fmt: skip
    assert rows(put(tmp_path / "c.jsonl", '{"text": "a\u2028b"}\n')) == [("a\u2028b", None)]


def test_labels_by_name_before_number(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "a", "label": 2, "label_text": "Sports"}\n{"text": "b", "label": 2.0}\n')
    assert [row.label for row in read_texts(path)] == ["Sports", "2"]
    with pytest.raises(ValueError, match="it tells no splits"):
        read_texts(path, split="test")


def test_an_existing_file_goes_before_a_pattern(tmp_path: Path) -> None:
    put(tmp_path / "a1.txt", "another's")
    assert rows(tmp_path / "a[1].txt") == [("another's", None)]
    put(tmp_path / "a[1].txt", "mine")
    put(tmp_path / "b{1,2}.txt", "mine too")
    assert rows(tmp_path / "a[1].txt") + rows(tmp_path / "b{1,2}.txt") == [("mine", None), ("mine too", None)]


def test_ranges_of_shards(tmp_path: Path) -> None:
    for i in range(3):
        shard(tmp_path / f"{i:05d}.tar", [("._0.txt", b"\0\1"), ("0.txt", f"text {i}".encode()), ("0.jpg", b"x")])
    every = [(f"text {i}", f"{i:05d}.tar/0") for i in range(3)]
    assert rows(tmp_path / "{00000..00002}.tar") == every  # equal keys of two shards are two images
    assert rows(tmp_path / "0000{1,2}.tar") == every[1:] and rows(tmp_path / "*.tar") == every
    with pytest.raises(FileNotFoundError, match=r"no such file: .*00003\.tar"):
        rows(tmp_path / "{00000..00003}.tar")
    with pytest.raises(ValueError, match="no range"):
        rows(tmp_path / "{3..1}.tar")
    with pytest.raises(FileNotFoundError, match="is a folder; name the files"):
        rows(tmp_path)


def test_tars_that_are_not_whole(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("a.txt", b"a cat"), ("b.txt", b"a dog")])
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="its end is missing"):
        rows(put(path, whole[:1024]))
    with pytest.raises(ValueError, match="more stands behind the end"):
        rows(put(path, whole * 2))
    with pytest.raises(ValueError, match="stands there twice"):
        rows(shard(path, [("a.txt", b"a cat"), ("a.txt", b"a dog")]))
    with pytest.raises(ValueError, match="no member KEY"):
        rows(shard(path, [("a.jpg", b"a cat")]))


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path, asked = tmp_path / "a.parquet", list[list[str]]()
    image = [{"bytes": b"x" * 99, "path": name} for name in ("1.jpg", "2.jpg")]
    captions = [["a cat", "a hat"], ["a dog"]]
    pq.write_table(pa.table({"caption": captions, "image": image, "other": [b"x", b"y"], "Split": ["a", "b"]}), path)
    plain = pq.ParquetFile.iter_batches

    def watched(self: object, columns: list[str]) -> object:
        asked.append(columns)
        return plain(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert rows(path) == [("a cat", "1.jpg"), ("a hat", "1.jpg"), ("a dog", "2.jpg")]
    assert asked == [["caption", "image.path", "Split"]]
    assert [row.text for row in read_texts(path, split="b")] == ["a dog"]
    path.rename(tmp_path / "a.data")
    assert rows(tmp_path / "a.data")[2:] == [("a dog", "2.jpg")]


def test_images_of_a_data_set_are_not_decoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    broken = [{"bytes": b"no image", "path": None}] * 2
    given = {"image": broken, "Caption": ["a cat", "a dog"], "filename": ["1.jpg", "2.jpg"], "label": [1, 0]}
    kinds = datasets.Features(image=datasets.Image(), Caption=datasets.Value("string"), filename=datasets.Value("string"),
                              label=datasets.ClassLabel(names=["dog", "cat"]))  # fmt: skip
    datasets.Dataset.from_dict(given, features=kinds).save_to_disk(tmp_path / "d")
    found = read_texts(f"dataset:{tmp_path / 'd'}")
    assert [(row.text, row.image, row.label) for row in found] == [("a cat", "1.jpg", "cat"), ("a dog", "2.jpg", "dog")]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.token"])
@pytest.mark.parametrize("unit", ["x", "x ", "'\\", '["', "{1..2}", '""'])
def test_a_prompt_of_a_megabyte_is_refused_at_once(tmp_path: Path, name: str, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    content = {
        "a.csv": f"caption,id\n{text},1",
        "a.tsv": f"caption\tid\n{text}\t1",
        "a.jsonl": json.dumps(text),
        "a.json": json.dumps([{"text": text}]),
        "a.token": f"1.jpg#0\t{text}",
    }
    path, began = put(tmp_path / name, content.get(name, text)), time.perf_counter()
    with pytest.raises(ValueError, match=name):
        read_texts(path)
    assert time.perf_counter() - began < 1


def test_the_longest_prompt(tmp_path: Path) -> None:
    assert len(rows(put(tmp_path / "a.txt", "x" * LONGEST_PROMPT))[0][0]) == LONGEST_PROMPT
    with pytest.raises(ValueError, match=r"a\.txt, line 1: 32,769 characters are no caption or prompt"):
        rows(put(tmp_path / "a.txt", "x" * (LONGEST_PROMPT + 1)))


captions = st.lists(
    st.text(max_size=20) | st.text("ab \"',;|\t\r\n[]{}#\\\ufeff\u2028", max_size=12),
    min_size=1,
    max_size=6,
)


def _csv(given: list[str], mark: str, quoting: bool) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL if quoting else csv.QUOTE_MINIMAL)
    writer.writerows([["id", "caption"], *([str(i), text] for i, text in enumerate(given))])
    return file.getvalue()


FORMATS = (
    "a.txt", "a.csv", "b.csv", "a.tsv", "semicolon.csv", "lists.csv", "a.jsonl", "b.jsonl", "a.json", "coco.json", "karpathy.json",
    "a.token", "a.tar",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=captions)
def test_round_trip(tmp_path: Path, name: str, given: list[str]) -> None:
    """What is written in a format is read back equal, all of it, or refused."""
    path, one_line = tmp_path / name, not any(set(text) & set("\r\n") for text in given)
    kind = name.partition(".")[0]
    if name in ("a.txt", "a.token"):
        if not one_line:
            return  # such a file cannot hold them
        head = "1.jpg#0\t" if name == "a.token" else ""
        put(path, "".join(f"{head}{text}\n" for text in given))
    elif name == "lists.csv":
        put(path, _csv([repr(given), json.dumps(given)], ",", True))
    elif name.endswith("sv"):
        put(path, _csv(given, "\t" if name == "a.tsv" else ";" if kind == "semicolon" else ",", kind != "a"))
    elif name.endswith(".jsonl"):
        put(path, "".join(json.dumps({"caption": text}, ensure_ascii=kind == "a") + "\n" for text in given))
    elif name == "a.tar":
        shard(path, [(f"{i}.txt", text.encode()) for i, text in enumerate(given)])
    else:
        value: object = given
        if kind == "coco":
            value = {"annotations": [{"image_id": 1, "caption": text} for text in given], "images": [{"id": 1}]}
        elif kind == "karpathy":
            value = {"images": [{"filename": "1", "sentences": [{"raw": text} for text in given]}]}
        put(path, json.dumps(value))
    bare = [text.strip().removeprefix("\ufeff").strip() for text in given] * (1 + (name == "lists.csv"))
    wanted = [text if shows(text) else "" for text in bare]  # nothing to see is nothing to read
    found, said = list[str](), ""
    try:
        found = [text for text, _ in rows(path)]
    except ValueError as error:
        said = str(error)
    if said:
        # "[" begins a list, "{" alone on the first line an object: as JSON they are broken, and refused rather than guessed
        bare = [text.strip("\ufeff \t") for text in given]
        in_brackets = any(text.startswith("[") or text == "{" or "\0" in text for text in bare)
        assert str(path) in said and (in_brackets or not one_line), said
    else:
        assert found == wanted
