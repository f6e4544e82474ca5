"""A real file system that is really full, and workers that believe to be on two machines, in namespaces of their own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leaf_diffusion.runs import RunSpec, RunStore, load_run
from leaf_diffusion.runs.claims import record_files
from leaf_diffusion.runs.records import Record

WRITES = '''
import errno, json, os, sys
from pathlib import Path
import torch
from PIL import Image
from torch import nn
from leaf_diffusion.finetune.checkpoint import Checkpoint, Numbers, Training, append_log, cut_log, write_state
from leaf_diffusion.runs import RunFolderError, RunResults, RunSpec, RunStore, atomic_write, image_name, load_run
from leaf_diffusion.runs.records import Record

disk, spec = Path(sys.argv[1]), RunSpec({"attack": "charmer"})
row = {"encoder": "x", "baseline": None, "protocol": "clean", "source": None, "attack": None, "constraint": None, "k": 0,
       "metric": "drift", "mean": 0.5, "ci_low": None, "ci_high": None, "n": 1, "seeds": 1}
module = nn.Linear(300, 100)
optimiser = torch.optim.AdamW(module.parameters())
checkpoint, image = Checkpoint(disk / "tuned", module, optimiser), Image.effect_noise((99, 99), 50)


def fill(room):
    """Leave about so many bytes."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - room))


def refused(write):
    try:
        write()
    except RunFolderError as error:
        assert "the disk is full; free some space" in str(error) and str(disk) in str(error), error
    else:
        raise AssertionError("there was room")


def left():
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file() and path.name != "ballast")


(disk / "tuned").mkdir()
fill(500_000)
refused(lambda: RunStore.open(disk / "run", spec))  # less than what is tried before the work
(disk / "ballast").unlink()
with RunStore.open(disk / "run", spec) as store:
    store.append("units", Record.model_validate({"id": "0", "text": "x" * 9000}))
    store.save_image(image_name("0"), image)
    store.begin("units", {"units": 9})
    store.write_results(RunResults.model_validate({"rows": [row]}))
    checkpoint.save(1, Numbers(), {})
    write_state(disk / "tuned", Training(identity={"lr": 1}, finished=False, before={}))
    append_log(disk / "tuned", {"step": 1})
    before = {name: (disk / name).read_bytes() for name in left()}
    for room in (0, 5000):  # nothing more, and a part of it
        fill(room)
        for write in (
            lambda: store.append("units", Record.model_validate({"id": "1", "text": "x" * 9000})),
            lambda: store.save_image(image_name("1"), image),
            lambda: store.save_image(image_name("0"), image),
            lambda: store.begin("units", {f"units{i}": i for i in range(900)}),
            lambda: store.write_results(RunResults.model_validate({"rows": [row] * 99})),
            lambda: checkpoint.save(2, Numbers(), {}),
            lambda: write_state(disk / "tuned", Training(identity={"lr": "x" * 9000}, finished=False, before={})),
            lambda: append_log(disk / "tuned", {"step": 2, "x": "x" * 9000}),
        ):
            refused(write)
            there = {name: (disk / name).read_bytes() for name in left()}
            log = "tuned/training_log.jsonl"  # a line cut short there is cut when the training goes on
            assert there[log].startswith(before[log]) and b"\\n" not in there[log][len(before[log]) :]
            there[log] = before[log]
            assert there == before, [name for name in there.keys() | before if there.get(name) != before.get(name)]
    (disk / "ballast").unlink()
    assert checkpoint.load()[0] == 1
    assert store.append("units", Record.model_validate({"id": "1", "text": "x" * 9000}))
    store.save_image(image_name("1"), image)
    checkpoint.save(2, Numbers(), {})
    cut_log(disk / "tuned", 1)
    append_log(disk / "tuned", {"step": 2})
    assert [json.loads(line)["step"] for line in open(disk / "tuned" / "training_log.jsonl")] == [1, 2]
with RunStore.open(disk / "run", spec) as store:
    assert (store.done("units"), store.torn) == ({"0", "1"}, {})
    store.append("units", Record(id="2"))
assert [record.id for record in load_run(disk / "run").records("units", Record)] == ["0", "1", "2"]
assert checkpoint.load()[0] == 2
print("all was tried")
'''
WORKER = """
import json, os, socket, sys, time
from leaf_diffusion.runs import RunSpec, RunStore
from leaf_diffusion.runs.records import Record

with RunStore.open(sys.argv[1], RunSpec({"attack": "charmer"}), shared=True) as store:
    print(json.dumps([socket.gethostname(), os.getpid(), store.slot]), flush=True)
    sys.stdin.readline()  # both are there
    for unit in map(str, range(200)):
        if store.claim(unit):
            store.refresh()
            if not store.has("units", [unit]):
                store.append("units", Record.model_validate({"id": unit, "by": store.slot}))
                time.sleep(0.001)
            store.unclaim(unit)
"""


def in_namespace(options: list[str], setup: str, program: str, *words: str) -> list[str]:
    """The command that runs a program after `setup` in namespaces of its own; skips where these are not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine (Debian: util-linux)")
    begin = ["unshare", "--map-root-user", *options, "sh", "-c", f'{setup} && exec "$@"', "sh"]
    tried = subprocess.run([*begin, "true"], capture_output=True, text=True, check=False, timeout=60)
    if tried.returncode:
        pytest.skip(f"namespaces are not allowed here: {tried.stderr.strip()[-200:]}")
    return [*begin, sys.executable, "-c", program, *words]


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    command = in_namespace(["--mount"], f"mount -t tmpfs -o size=3m none '{tmp_path}'", WRITES, str(tmp_path))
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "all was tried" in ran.stdout, ran.stderr[-3000:]


@pytest.mark.slow
def test_workers_of_two_machines_share_a_folder(tmp_path: Path) -> None:
    """Other host names and the same process id, as two machines may have them: nothing depends on either."""
    workers = [
        subprocess.Popen(
            in_namespace(["--uts", "--pid", "--fork"], f"hostname {name}", WORKER, str(tmp_path)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("node-a", "node-b")
    ]  # fmt: skip
    said: list[Any] = []
    for worker in workers:
        assert worker.stdout is not None
        said.append(json.loads(worker.stdout.readline()))
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    hosts, ids, slots = zip(*said, strict=True)
    assert (set(hosts), len(set(ids)), set(slots)) == ({"node-a", "node-b"}, 1, {0, 1})
    lines = [line for _, _, path in record_files(tmp_path) for line in path.read_bytes().splitlines()]
    assert len(lines) == 200  # nothing twice
    found = load_run(tmp_path).records("units", Record)
    assert {record.id for record in found} == set(map(str, range(200)))
    assert {record.model_dump()["by"] for record in found} == {0, 1}
    RunStore.open(tmp_path, RunSpec({"attack": "charmer"})).close()
