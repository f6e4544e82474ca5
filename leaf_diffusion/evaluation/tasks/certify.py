"""Certificates: which prompts a tokenizer, behind a defence, reads the same after every allowed edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

from leaf_diffusion.attacks.base import generators
from leaf_diffusion.encoders.base import TextEncoder
from leaf_diffusion.runs.certificates import Certificate, Left
from leaf_diffusion.text import Candidates, Constraint, distance, neighbours
from leaf_diffusion.text.edits import random_edits

AT_ONCE = 4096
"""Edits that are read at a time."""


def basis(encoder: TextEncoder, constraint: Constraint | None, k: int, sample: int, seed: int) -> str:
    """sha256 of what certificates follow from, besides the prompts."""
    rule = "none" if constraint is None else constraint.name
    drawn = f"{sample} {seed}" if k > 1 else "all"
    return sha256(f"{encoder.tokenization}\n{rule}\n{k}\n{drawn}".encode()).hexdigest()


def certify(
    encoder: TextEncoder,
    prompt: str,
    constraint: Constraint | None,
    k: int = 1,
    *,
    sample: int = 0,
    seed: int = 0,
) -> Certificate:
    """Read every allowed edit of a prompt; with `k` > 1, where there are millions, `sample` of them drawn at random, of
    which one can refute a certificate and all cannot give it."""
    if k == 1:
        everything = neighbours(prompt)
        if constraint is not None:
            everything = everything[constraint.allows(prompt, prompt, everything)]
        parts: Iterable[Candidates] = (everything[i : i + AT_ONCE] for i in range(0, len(everything), AT_ONCE))
    else:
        parts = [Candidates.from_texts(_drawn(prompt, constraint, k, sample, seed))]
    clean = encoder.tokenize_candidates(Candidates.from_texts([prompt]))[0]
    left, examples, edits = Counter[tuple[int, ...]](), dict[tuple[int, ...], str](), 0
    for part in parts:
        edits += len(part)
        for i, row in enumerate(encoder.tokenize_candidates(part)):
            if row != clean:
                left[row] += 1
                if row not in examples:
                    examples[row] = part.text(i)
    groups = [
        Left(read=encoder.rows.text(row), edits=n, edit=examples[row])
        for row, n in sorted(left.items(), key=lambda item: (-item[1], item[0]))
    ]
    return Certificate(
        prompt=prompt,
        edits=edits,
        undone=edits - left.total(),
        certified=False if left else True if k == 1 else None,
        edit=groups[0].edit if groups else None,
        reads=encoder.rows.text(clean),
        left=groups,
        k=k,
        sampled=k > 1,
        basis=basis(encoder, constraint, k, sample, seed),
    )


def _drawn(prompt: str, constraint: Constraint | None, k: int, sample: int, seed: int) -> list[str]:
    """Allowed texts at distance `k`, each by `k` random edits one after the other; fewer where few are allowed."""
    (rng,) = generators([prompt], seed)
    found = list[str]()
    for _ in range(64 * sample):
        if len(found) == sample:
            break
        text = prompt
        for _ in range(k):
            text = random_edits(text, 1, rng).text(0)
        if distance(prompt, text) == k and (constraint is None or constraint.holds(prompt, text)):
            found.append(text)
    return found
