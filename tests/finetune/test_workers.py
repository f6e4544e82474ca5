"""Candidates made by other processes: the same attack, the same training, to the bit."""

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from leaf_diffusion.attacks import Attack, LeafAttack
from leaf_diffusion.attacks.base import Outcome, Problem
from leaf_diffusion.encoders.clip import HFTextEncoder
from leaf_diffusion.finetune import TextFAREConfig, finetune_text_encoder
from leaf_diffusion.finetune.anchors import attack_captions, embed
from leaf_diffusion.finetune.workers import AttackWorkers
from leaf_diffusion.scoring import prefix
from leaf_diffusion.scoring.prefix import PrefixScore
from leaf_diffusion.text import NoNewWords
from tests.finetune.test_finetune import CAPTIONS, SETTINGS, weights

STRANGE = ["a", "café de la paix", "fish &amp; chips on a table", "A dog | a cat", "x" * 90]


def workers(encoder: HFTextEncoder, n: int, attack: Attack, captions: list[str], **settings: Any) -> AttackWorkers:
    return AttackWorkers(n, attack, encoder, lambda number: (captions[number:], 7 + number), 3, **settings)


@pytest.mark.parametrize(("n", "k", "rule"), [(1, 1, None), (3, 2, NoNewWords()), (9, 2, NoNewWords())])
def test_an_attack_in_workers_finds_the_same_from_the_same_scores(
    encoder: HFTextEncoder, n: int, k: int, rule: NoNewWords | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "TOGETHER", 40)  # several groups a call
    captions, attack = [*STRANGE, *CAPTIONS[:3]], LeafAttack(rho=6)
    scored, finish = list[bytes](), PrefixScore._finish

    def noted(self: PrefixScore, *given: Any) -> Any:
        found = finish(self, *given)
        scored.append(torch.cat(found).numpy().tobytes())
        return found

    monkeypatch.setattr(PrefixScore, "_finish", noted)
    outside = workers(encoder, n, attack, captions, k=k, constraint=rule)
    for number in range(3):
        mine = captions[number:]
        given = (attack, encoder, mine, embed(encoder, mine) + 0.1)
        texts, calls = [], []
        for search in (None, partial(outside, number)):
            scored.clear()
            texts.append(attack_captions(*given, k=k, constraint=rule, seed=7 + number, search=search))
            calls.append(sorted(scored))
        assert texts[0] == texts[1] != mine
        assert calls[0] == calls[1]
        assert len(calls[0]) == 2 * k + 1


def test_a_training_with_workers_ends_with_the_same_weights(encoder: HFTextEncoder, tmp_path: Path) -> None:
    def trained(name: str, **settings: Any) -> Path:
        recipe: dict[str, Any] = {**SETTINGS, "max_steps": 4, "accumulation": 2, "replay": 0.25, "k": 2, **settings}
        config = TextFAREConfig(**recipe)
        return finetune_text_encoder(encoder, CAPTIONS[:18], tmp_path / name, config, held_out=CAPTIONS[18:])

    alone, helped = weights(trained("alone")), weights(trained("helped", workers=2))
    assert alone and all(torch.equal(value, helped[key]) for key, value in alone.items())
    # the same training: it counts as finished whatever the number of workers
    before = (tmp_path / "helped" / "training_log.jsonl").read_bytes()
    trained("helped", workers=1)
    assert (tmp_path / "helped" / "training_log.jsonl").read_bytes() == before
    assert json.loads(before.splitlines()[-1])["step"] == 4
    assert not multiprocessing.active_children()


@dataclass(frozen=True, kw_only=True)
class Failing(Attack):
    name = "failing"
    dies: bool = False

    def run(self, problem: Problem) -> list[Outcome]:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no such slot")


@pytest.mark.parametrize(("dies", "said"), [(False, "failed: ValueError.'no such slot'"), (True, "has ended")])
def test_a_worker_that_fails_ends_the_training(encoder: HFTextEncoder, dies: bool, said: str) -> None:
    outside = workers(encoder, 2, Failing(dies=dies), CAPTIONS[:4], k=1, constraint=None)
    with pytest.raises(RuntimeError, match=said):
        attack_captions(
            LeafAttack(), encoder, CAPTIONS[:4], embed(encoder, CAPTIONS[:4]), k=1, constraint=None, seed=7,
            search=partial(outside, 0),
        )  # fmt: skip
    outside.close()
    assert not multiprocessing.active_children()


def test_workers_end_with_what_they_work_for(encoder: HFTextEncoder) -> None:
    outside = workers(encoder, 2, LeafAttack(rho=4), CAPTIONS[:4], k=1, constraint=None)
    assert len(multiprocessing.active_children()) == 2
    del outside
    assert not multiprocessing.active_children()


def test_workers_that_have_nothing_to_do_are_refused() -> None:
    with pytest.raises(ValueError, match="random-typos has none: workers=0"):
        TextFAREConfig(workers=2, attack="random-typos")
    with pytest.raises(ValueError, match="workers must be"):
        TextFAREConfig(workers=-1)
