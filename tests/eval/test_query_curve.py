import itertools
from pathlib import Path

import pytest

from leaf_diffusion.attacks import Exhaustive
from leaf_diffusion.encoders.load import load_text_encoder
from leaf_diffusion.eval import query_curve, zero_shot_world
from leaf_diffusion.eval.query_curve import Captions, curve_points, search
from leaf_diffusion.scoring import Margin, Scorer
from leaf_diffusion.text import NoNewWords
from leaf_diffusion.world.captions import zero_shot_prompts
from leaf_diffusion.world.figures import zero_shot_anchors


@pytest.mark.parametrize("queries", [1, 2, 4, 6, 9])
def test_random_edits_hold_as_often_as_a_count_of_all_draws_says(queries: int) -> None:
    found = Captions([True, True, False], [6, 6, 6], [2, 0, 0], {})
    draws = list(itertools.combinations(range(6), min(queries, 6)))
    held = sum(not {0, 1} & set(draw) for draw in draws) / len(draws)
    assert found.against_random(queries) == pytest.approx([held, 1.0, 0.0])


def test_the_whole_space_is_the_exhaustive_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_curve, "CHARMER_POSITIONS", (2,))
    encoder, anchors = load_text_encoder("world:leaf"), zero_shot_anchors(per_class=1)
    texts = [text for text, _, _ in zero_shot_prompts()][:3]
    found = search(encoder, texts, [0, 1, 2], anchors, "no-new-words")
    for label, text in enumerate(texts):
        scorer = Scorer(encoder, Margin(anchors, [label]))
        exact = Exhaustive()([text], scorer, k=1, constraint=NoNewWords())[0]
        assert found.robust()[label] == float(exact.score <= 0)
        assert found.right[label] == (exact.clean_score <= 0)
    *_, last, charmer = curve_points(found)
    assert last["queries"] == max(found.edits)
    assert last["mean"] == pytest.approx(sum(found.robust()) / 3)
    assert charmer["attack"] == "charmer, n=2"
    assert charmer["mean"] >= last["mean"]  # nothing is stronger than all edits


def test_the_command_writes_figures_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "zs.json"
    arguments = ["--encoders", "original", "leaf+speller", "--limit", "2", "--pictures", "1", "--output", str(output)]
    assert zero_shot_world.main(arguments) == 0
    assert "<svg" in output.with_suffix(".svg").read_text()
    said = capsys.readouterr().out
    assert "charmer, n=20" in said
    assert "1000 random edits" in said
