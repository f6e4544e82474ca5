"""A record's line: no bit of it changes unseen, lines from before the checksums are read, wrong fields are named."""

import hashlib
import json
from pathlib import Path

import pytest

from leaf_diffusion.runs import DamagedRecords, RunSpec, RunStore, load_run
from leaf_diffusion.runs.log import encode, read_jsonl, read_line
from leaf_diffusion.runs.records import KINDS, Record

SPEC = RunSpec({"attack": "charmer"})
RIGHT: list[dict[str, object]] = [
    {"id": "a", "text": "zwei „Katzen“\u2028", "score": 0.1, "right": True},
    {"id": "b", "k": [1, 2], "none": None},
    {"id": "c", "nested": {"x": 1e-9}},
]


def write(folder: Path, records: list[dict[str, object]]) -> Path:
    with RunStore.open(folder, SPEC) as store:
        for record in records:
            store.append("units", Record.model_validate(record))
    return folder / "records" / "units.jsonl"


def test_a_line_is_canonical_json_and_carries_the_checksum_of_what_stands_before_it(tmp_path: Path) -> None:
    lines = write(tmp_path, RIGHT).read_bytes().splitlines()
    for line, record in zip(lines, RIGHT, strict=True):
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        written = json.loads(line)
        assert written.pop("sum") == hashlib.sha256(canonical.encode()).hexdigest()[:16]
        assert written == record
        assert line.startswith(canonical[:-1].encode())
    assert [record.model_dump() for record in load_run(tmp_path).records("units", Record)] == RIGHT


def test_no_bit_of_a_file_of_records_changes_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)
    path = write(tmp_path, RIGHT)
    whole = path.read_bytes()
    refused = cut = 0
    for bit in range(8 * len(whole)):
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        line = whole.count(b"\n", 0, bit // 8) + 1
        try:
            records, size, torn = read_jsonl(path, Record)
        except DamagedRecords as error:
            refused += f"{path}, line {line} is damaged" in str(error)
        else:  # the last line, or the two that a lost end has joined: as a crash would have it, computed again
            cut += 1
            assert [record.model_dump() for record in records] == RIGHT[
                : 1 if whole[bit // 8] == 10 and line == 2 else 2
            ]
            assert (size + torn, torn > 0) == (len(whole), True)
            if bit % 8 == 0:
                assert write(tmp_path, RIGHT).read_bytes() == whole
    assert refused + cut == 8 * len(whole)
    assert min(refused, cut) > 400


def test_lines_from_before_the_checksums_are_read_and_gone_on_with(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    old = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RIGHT[:2])
    path.write_bytes(old)
    write(tmp_path, RIGHT)
    assert path.read_bytes() == old + encode(RIGHT[2]) + b"\n"
    assert [record.model_dump() for record in load_run(tmp_path).records("units", Record)] == RIGHT
    line = encode(RIGHT[0])
    for wrong in (line.replace(b'"sum"', b'"sun"'), line[: line.index(b',"sum"')] + b"}", b'{"id": "a", "x": NaN}'):
        with pytest.raises(ValueError, match=r"not spelled|Out of range"):
            read_line(wrong, Record)
    with pytest.raises(ValueError, match="does not fit into JSON"):
        write(tmp_path, [{"id": "d", "sum": "mine"}])


WRONG: list[object] = [
    None,
    True,
    -1,
    0,
    1,
    0.5,
    10**16,
    10**400,
    "",
    "x",
    "../x",
    [],
    [[]],
    [["a"]],
    [1],
    {},
    {"x": 1},
]
IMAGE = f"images/{'0' * 24}.png"
NUMBERS, TEXTS = [-1, 0, 1, 0.5, 10**16], ["", "x", "../x", f"{IMAGE}\n"]
FITTING: dict[str, list[object]] = {
    **{key: [*TEXTS] for key in ("prompt_id", "prompt", "perturbed", "original", "encoder", "given")},
    **{key: [0, 1] for key in ("k", "seed_index")},
    **{key: [None, *TEXTS] for key in ("attack", "constraint")},
    **{key: [None, *NUMBERS] for key in ("distance", "score", "queries", "unseen_tokens", "clip_score")},
    **{key: [None, *NUMBERS] for key in ("clip_score_attacked_caption", "drift", "drift_features")},
    **{key: [None, *NUMBERS] for key in ("swap_drift", "swap_drift_features")},
    "truncated": [True],
    **{key: [None, True] for key in ("scene_correct", "exact")},
    "shattered": [[], [[]], [["a"]]],
    "protocol": [],
    "image": [],
    "sha256": [None],
    "size": [None, 0, 1],
}


def fits(kind: str, name: str, value: object) -> bool:
    allowed = TEXTS + [None] * (kind == "images") if name == "source" else FITTING[name]
    return any(type(value) is type(each) and value == each for each in allowed)


FULL: dict[str, dict[str, object]] = {
    "attacks": {"id": "a", "prompt_id": "p", "prompt": "a cat", "perturbed": "a czt", "source": "original", "k": 1,
                "truncated": False, "attack": "charmer", "constraint": None, "distance": 1, "score": 0.5, "queries": 9,
                "unseen_tokens": 0.0, "exact": True, "shattered": [["c", "zt"]]},
    "images": {"id": "a", "prompt_id": "p", "prompt": "a cat", "original": "a cat", "encoder": "leaf",
                 "protocol": "clean", "source": None, "k": 0, "seed_index": 0, "image": f"images/{'0' * 24}.png",
                 "given": "a cat", "truncated": False, "sha256": "0" * 64, "size": 9},
    "scores": {"id": "a", "scene_correct": True, "clip_score": 20.0, "clip_score_attacked_caption": 20, "drift": None,
               "drift_features": 0.1, "swap_drift": 0.2, "swap_drift_features": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", FULL)
def test_each_field_is_checked_where_it_is_read_and_where_it_is_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda fd: None)
    fields, right = dict(KINDS[kind].model_fields), FULL[kind]
    assert set(fields) == set(right)
    del fields["id"]
    with RunStore.open(tmp_path, SPEC) as store:
        store.append(kind, KINDS[kind].model_validate(right))
    path, before = tmp_path / "records" / f"{kind}.jsonl", encode(right | {"id": "0"}) + b"\n"
    for name, field in fields.items():
        spoiled = [right | {name: value} for value in [*WRONG, f"{IMAGE}\n"] if not fits(kind, name, value)]
        spoiled += [{key: value for key, value in right.items() if key != name}] if field.is_required() else []
        assert len(spoiled) > 5
        for record in spoiled:
            for line in (encode(record), json.dumps(record).encode()):
                path.write_bytes(before + line + b"\n")
                for read in (
                    lambda: load_run(tmp_path).records(kind, KINDS[kind]),
                    lambda: RunStore.open(tmp_path, SPEC).close(),
                ):
                    with pytest.raises(DamagedRecords, match=rf'{kind}\.jsonl, line 2 .*the field "{name}"'):
                        read()
            path.write_bytes(before)
            with RunStore.open(tmp_path, SPEC) as store, pytest.raises(ValueError, match=f'"{name}"'):
                store.append(kind, Record.model_validate(record))
            assert path.read_bytes() == before


def test_another_experiment_keeps_records_of_its_own(tmp_path: Path) -> None:
    with RunStore.open(tmp_path, RunSpec({"experiment": "textfare"})) as store:
        store.append("attacks", Record(id="a"))
    assert load_run(tmp_path).records("attacks", Record) == [Record(id="a")]
