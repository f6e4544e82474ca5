"""Cards and the Hub: what is pushed to a stand-in of the Hub on this machine is loaded back from it, by name."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData

from leaf_diffusion.reports.card import eval_results, write_card
from leaf_diffusion.runs import ResultRow, RunResults, RunSpec, RunStore, write_results
from leaf_diffusion.tokens.tokenizer import clip_tokenizer

if TYPE_CHECKING:
    from tests.pipelines.conftest import Kind

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as pushing and loading models asks for. files: {repository: {path: bytes}}."""

    files: dict[str, dict[str, bytes]]
    blobs: dict[str, bytes]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object = b"", status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, X_Error_Code=code)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self.body()
        self.asked.append(f"POST {path}")
        here = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.files.setdefault(name, {})
            return self.answer({"url": f"{here}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in json.loads(body)["files"]
            ]
            return self.answer({"files": [{"shouldIgnore": False, "oid": None, **mode} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{here}/blobs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    self.files[name][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    self.files[name][value["path"]] = self.blobs[value["oid"]]
            return self.answer(
                {"commitUrl": f"{here}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "commitMessage": ""}
            )
        return self.missing("EntryNotFound")

    def do_PUT(self) -> None:
        data, oid = self.body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.blobs[oid] = data
        self.answer()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/"):
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if name not in self.files:
                return self.missing("RepoNotFound")
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": at, "size": len(data), "oid": COMMIT}
                    for at, data in self.files[name].items()
                ]
                return self.answer(listed)
            siblings = [{"rfilename": at} for at in self.files[name]]
            return self.answer({"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        name, _, rest = path.strip("/").partition("/resolve/")
        if name not in self.files:
            return self.missing("RepoNotFound")
        data = self.files[name].get(rest.partition("/")[2])
        if data is None:
            return self.missing("EntryNotFound")
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("OneHub", (Hub,), {"files": {}, "blobs": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CODE = """
import sys
import leaf_diffusion, numpy as np, torch
from huggingface_hub import upload_folder
from leaf_diffusion import load_text_encoder
from leaf_diffusion.pipelines import LeafStableDiffusionPipeline
from diffusers import DiffusionPipeline

folder, encoder_folder = sys.argv[1:]
encoder = load_text_encoder(encoder_folder)
pipe = LeafStableDiffusionPipeline.from_pretrained(folder, text_encoder=encoder)
pipe.push_to_hub("you/pipeline")
encoder.module.push_to_hub("you/encoder")
encoder.tokenizer.push_to_hub("you/encoder")
upload_folder(repo_id="you/encoder", folder_path=encoder_folder, allow_patterns=["README.md"])

ask = {"height": 8, "width": 8, "num_inference_steps": 2, "output_type": "np"}
def image(pipe):
    return pipe("a red umbrella", generator=torch.Generator().manual_seed(0), **ask).images

expected = image(pipe)
loaded = LeafStableDiffusionPipeline.from_pretrained("you/pipeline", revision="main")
again = LeafStableDiffusionPipeline.from_pretrained(folder, text_encoder="you/encoder")
stock = DiffusionPipeline.from_pretrained("you/pipeline")
assert type(stock).__name__ == "StableDiffusionPipeline"
for other in (loaded, again, stock):
    np.testing.assert_allclose(image(other), expected, atol=1e-5)
assert load_text_encoder("you/encoder", revision="main").fingerprint == encoder.fingerprint
try:
    LeafStableDiffusionPipeline.from_pretrained("you/nothing")
except FileNotFoundError as error:
    assert "the Hub says" in str(error), error
else:
    raise AssertionError("it was found")
"""


@pytest.mark.slow
def test_pushed_and_loaded_by_name(
    kinds: dict[str, Kind], folders: Callable[[Kind], Path], hub: tuple[type[Hub], str], tmp_path: Path
) -> None:
    kind, (served, endpoint) = kinds["sd"], hub
    new = kind.new_tower("text_encoder")
    new.save_pretrained(tmp_path / "encoder")
    clip_tokenizer().save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "README.md").write_text("---\nlibrary_name: transformers\n---\n# mine\n")
    code = tmp_path / "push.py"
    code.write_text(CODE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none"}
    environment |= {
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "0",
    }
    environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(code), str(folders(kind)), str(tmp_path / "encoder")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    pipeline, encoder = served.files["you/pipeline"], served.files["you/encoder"]
    assert json.loads(pipeline["model_index.json"])["_class_name"] == "StableDiffusionPipeline"
    assert {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= pipeline.keys()
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= encoder.keys()
    assert b"# mine" in encoder["README.md"]
    assert not [path for path in [*pipeline, *encoder] if path.endswith((".bin", ".pt"))]


def row(**changes: object) -> ResultRow:
    usual = {
        "encoder": "leaf", "baseline": None, "protocol": "clean", "source": None, "attack": None, "constraint": None,
        "k": 0, "metric": "scene_accuracy", "mean": 0.75, "ci_low": 0.6, "ci_high": 0.9, "n": 8, "seeds": 1,
    }  # fmt: skip
    return ResultRow.model_validate({**usual, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    settings = {"experiment": "t2i-robustness", "pipeline": "world", "prompts": ["a red <b>cat|", "a dog"], "seeds": 1}
    settings |= {"attack": "charmer", "constraint": "no-new-words"}
    store = RunStore.open(tmp_path / "run", RunSpec(settings), command="leaf-diffusion evaluate")
    attacked = {"protocol": "adaptive", "source": "leaf", "attack": "charmer", "constraint": "no-new-words", "k": 2}
    rows = [
        row(**attacked, mean=0.5),
        row(),
        row(metric="kid", mean=0.0625, ci_low=None, ci_high=None),
        row(metric="clip_score", mean=None, ci_low=None, ci_high=None),
        row(baseline="original", mean=0.125),
        row(encoder="original", mean=0.25),
        row(protocol="floor", metric="drift", mean=0.2),
    ]
    write_results(store.folder, RunResults(rows=rows))
    return store.folder


def test_a_card_holds_the_runs_own_figures(kinds: dict[str, Kind], run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no pipeline and no encoder"):
        write_card(folder, run, "leaf", name="Robust")
    (folder / "model_index.json").write_text("{}")
    path = write_card(folder, run, "leaf", name="Robust <img src=x> |\n# one", base_model="you/base")
    card = ModelCard.load(Path(path))
    found = [(result.metric_type, result.metric_args["k"], result.metric_value) for result in card.data.eval_results]
    assert found == [("scene_accuracy", 0, 0.75), ("scene_accuracy", 2, 0.5), ("kid", 0, 0.0625)]
    assert card.data.eval_results[1].metric_args["ci_low"] == 0.6
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["name"] == "2 prompts of the embedded world"
    assert (card.data.library_name, card.data.pipeline_tag, card.data.base_model) == (
        "diffusers",
        "text-to-image",
        "you/base",
    )
    text = path.read_text()
    assert "| Right images | attacked on itself, k=2 | 50% | 60 to 90 | 8 |" in text
    assert "<img" not in text and "\n# one" not in text
    (folder / "model_index.json").unlink()
    (folder / "config.json").write_text("{}")
    write_card(folder, run, "leaf", name="Robust")
    assert ModelCard.load(Path(path)).data.library_name == "transformers"
    with pytest.raises(ValueError, match=r"no figures of 'typo'; its encoders are: leaf, original"):
        eval_results(run, "typo")
    write_results(run, RunResults(rows=[]))
    with pytest.raises(ValueError, match="no results yet"):
        eval_results(run, "leaf")


def test_the_card_of_a_finetuning_has_a_model_index(tmp_path: Path) -> None:
    from leaf_diffusion.finetune.card import model_card
    from leaf_diffusion.finetune.config import TextFAREConfig
    from leaf_diffusion.finetune.text_card import text_card

    names = [f"{figure}_{key}" for figure in ("cosine", "drift") for key in ("clean", "typos", "leaf")]
    after = dict(zip(names, np.linspace(0.1, 0.6, 6).round(3).tolist(), strict=True)) | {"accuracy_clean": 0.9}
    counts = {"steps": 3, "per_update": 8, "captions": 20, "held_out": 5, "truncated": 0}
    config = TextFAREConfig(k=2)
    card = text_card("a: 'b'\n---\n", config, counts)
    text = model_card(card, config, dict.fromkeys(after, 1.0), after, counts)
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    results = data.eval_results
    assert results is not None
    assert {result.metric_type: result.metric_value for result in results} == after
    measured = [result.metric_args for result in results if result.metric_args is not None]
    assert len(measured) == len(results)
    assert {given["k"] for given in measured} == {0, 2}
    assert all(given["n"] == 5 for given in measured)
    assert data.library_name == "transformers"
