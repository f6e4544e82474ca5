"""Every reader of files against files that accidents and strangers made: read, or refused with the file's name."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from PIL import Image

from leaf_diffusion.command_line import parse
from leaf_diffusion.evaluation.attack_sets import read_attacks
from leaf_diffusion.evaluation.prompts import from_file
from leaf_diffusion.evaluation.t2i.options import Options
from leaf_diffusion.runs import RunFolderError, RunResults, RunSpec, RunStore, image_name, load_run, png_ok
from leaf_diffusion.runs.images import is_recorded
from leaf_diffusion.runs.records import ImageRecord

TEXTS = ["a red cat", "zwei „Katzen“, 猫", 'a "quoted" hat']
ROWS: list[dict[str, object]] = [{"caption": text, "image_id": i, "split": "test"} for i, text in enumerate(TEXTS)]
KARPATHY = [{"filename": f"{i}.jpg", "split": "val", "sentences": [{"raw": text}]} for i, text in enumerate(TEXTS)]
FILES: dict[str, str] = {
    "a.txt": "\n".join(TEXTS),
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.csv": 'id,caption,split\n1,a red cat,test\n2,"zwei „Katzen“, 猫",test\n',
    "results.csv": "image_name| comment_number| caption\n1.jpg| 0| a red cat\n",
    "a.tsv": "Prompt\tCategory\na red cat\tAnimals\n",
    "results.token": "1.jpg#0\ta red cat\n1.jpg#1\ta hat\n",
    "list.json": json.dumps(TEXTS),
    "coco.json": json.dumps({"images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)], "annotations": ROWS}),
    "karpathy.json": json.dumps({"images": KARPATHY, "dataset": "x"}),
}


@pytest.mark.parametrize("name", FILES)
def test_prompt_files(name: str, tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    fuzz.bytes(path, lambda: from_file(path, every=True), 60)
    if path.suffix in (".json", ".jsonl"):
        fuzz.json(path, lambda: from_file(path, every=True), 60)


def test_parquet(tmp_path: Path, fuzz: Any) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": TEXTS, "split": ["test"] * 3}), path)
    fuzz.bytes(path, lambda: from_file(path, every=True), 120)


@pytest.mark.parametrize("kind", ["w", "w:gz"])
def test_tars(kind: str, tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
        for i, text in enumerate(TEXTS):
            content = json.dumps({"caption": text}).encode()
            member = tarfile.TarInfo(f"{i}.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    fuzz.bytes(path, lambda: from_file(path, every=True), 120)


def test_attack_sets(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "attacked.jsonl"
    rows = [{"prompt": text, "perturbed": f"x{text}", "source": "leaf", "k": 1} for text in TEXTS]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(content)
    fuzz.bytes(path, lambda: read_attacks(path), 60)
    fuzz.json(path, lambda: read_attacks(path), 60)


def test_configurations(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "run.yaml"
    content = "k: [1, 3]\nlimit: 7\nencoders: [original, leaf]\nattack: leaf\nguidance: 2.5\ntwo_objects: 0.5\n"
    path.write_text(content)
    fuzz.bytes(path, lambda: parse(Options, ["--config", str(path)], command="evaluate"), 50)
    path.write_text(json.dumps({"k": [1], "limit": 7, "encoders": ["leaf"], "guidance": 2.5, "prompts": "x.txt"}))
    fuzz.json(path, lambda: parse(Options, ["--config", str(path)], command="evaluate"), 50)


SPEC = RunSpec({"attack": "charmer", "k": [1, 2], "encoders": {"original": "aa"}})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with records, an image and results."""
    monkeypatch.setattr("os.fsync", lambda fd: None)
    row: dict[str, object] = {
        "encoder": "leaf",
        "baseline": None,
        "protocol": "clean",
        "source": None,
        "attack": None,
        "constraint": None,
    }
    row |= {"k": 0, "metric": "drift", "mean": 0.5, "ci_low": 0.1, "ci_high": 0.9, "n": 3, "seeds": 1}
    with RunStore.open(tmp_path / "run", SPEC, command="x") as store:
        for i, text in enumerate(TEXTS):
            image = store.save_image(image_name(text), Image.effect_noise((16, 16), 50))
            store.append("images", ImageRecord.model_validate({
                "id": f"{i}", "prompt_id": f"{i}", "prompt": text, "original": text, "given": text, "encoder": "leaf",
                "protocol": "clean", "source": None, "k": 0, "seed_index": 0, "image": image, "truncated": False,
            }))  # fmt: skip
        store.write_results(RunResults.model_validate({"rows": [row]}))
    return tmp_path / "run"


def read_run(folder: Path) -> None:
    found = load_run(folder)
    assert isinstance(found.results.rows, list)
    assert isinstance(found.environment, dict)
    for record in found.records("images", ImageRecord):
        assert isinstance(record.id, str)


@pytest.mark.parametrize("name", ["spec.json", "environment.json", "results.json", "records/images.jsonl"])
def test_run_folders_are_read(name: str, run: Path, fuzz: Any) -> None:
    fuzz.bytes(run / name, lambda: read_run(run), 50)
    fuzz.json(run / name, lambda: read_run(run), 50)


@pytest.mark.parametrize("name", ["spec.json", "environment.json", "records/images.jsonl"])
def test_run_folders_are_continued(name: str, run: Path, fuzz: Any) -> None:
    fuzz.bytes(run / name, lambda: RunStore.open(run, SPEC).close(), 30, run)
    fuzz.json(run / name, lambda: RunStore.open(run, SPEC).close(), 30, run)


def test_images(run: Path, fuzz: Any) -> None:
    name = image_name(TEXTS[0])
    store = RunStore.open(run, SPEC)
    first = store.records("images", ImageRecord)[0]
    assert first.image == name

    def read() -> None:
        recorded = is_recorded(run / name, first)
        assert png_ok(run / name) or not recorded
        try:
            store.load_image(name)
        except RunFolderError:
            assert not recorded
            raise
        assert recorded

    fuzz.bytes(run / name, read, 200)
    fuzz.run(run / name, read, chunks((run / name).read_bytes()), 200)
    store.close()


@st.composite
def chunks(draw: st.DrawFn, content: bytes) -> bytes:
    """A PNG with a wrong chunk whose checksum is right."""
    at, found = 8, []
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        found.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    i = draw(st.integers(0, len(found) - 2))
    body = draw(st.binary(max_size=30)) if draw(st.booleans()) else found[i][1]
    where = draw(st.integers(0, len(body)))
    body = body[:where] + draw(st.binary(max_size=4)) + body[where + draw(st.integers(0, 5)) :]
    kind = draw(
        st.sampled_from(
            (
                found[i][0],
                b"tEXt",
                b"zTXt",
                b"iTXt",
                b"iCCP",
                b"tRNS",
                b"PLTE",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"eXIf",
                b"pHYs",
                b"cHRM",
                b"gAMA",
                b"sRGB",
            )
        )
    )
    found.insert(i + draw(st.integers(0, 1)), (kind, body))
    if draw(st.booleans()):
        del found[i]
    parts = [
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in found
    ]
    return content[:8] + b"".join(parts)
