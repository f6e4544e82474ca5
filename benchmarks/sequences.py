"""Language models as text encoders, by the plain engine and by the prefix engine (`attacks.py --shape qwen3-tiny ...`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
import torch
from baselines import SENTENCES, product_limit
from diffusers import QwenImagePipeline, SanaPipeline
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from leaf_diffusion.attacks import Attack, Charmer, Exhaustive, LeafAttack
from leaf_diffusion.attacks.base import Problem
from leaf_diffusion.encoders.decoder import DecoderTextEncoder
from leaf_diffusion.encoders.defences.caption_model import shipped_captions
from leaf_diffusion.scoring import Scorer, decoder_forest
from leaf_diffusion.text import Constraint, NoNewWords
from leaf_diffusion.tokens.reading import Reading

SIZES: dict[str, dict[str, Any]] = {
    "qwen3-tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
                   "num_key_value_heads": 4, "head_dim": 32},
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 16,
                   "num_key_value_heads": 8, "head_dim": 128},
    "gemma2-2b": {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 2, "num_attention_heads": 8,
                  "num_key_value_heads": 4, "head_dim": 256},
}  # fmt: skip
"""The second and third have the widths of models that are used, and a few of their 28 and 26 blocks."""
CASES: tuple[tuple[str, Attack, int, Constraint | None], ...] = (
    ("Charmer n=10, k=1", Charmer(n_positions=10), 1, None),
    ("all edits, constrained", Exhaustive(), 1, NoNewWords()),
    ("LEAF rho=50, batch 4", LeafAttack(rho=50), 4, None),
)


def tower(shape: str) -> DecoderTextEncoder:
    """A language model of random weights, its tokenizer trained on captions, read as Qwen-Image or Sana read theirs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(shipped_captions(), trainer)
    reads = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    torch.manual_seed(0)
    if shape.startswith("gemma2"):
        lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        before, after = "\n".join(lines), ""
        module: Any = Gemma2Model(Gemma2Config(vocab_size=4000, sliding_window=4096, **SIZES[shape]))
    else:
        pipeline = QwenImagePipeline(None, None, None, reads, None)
        before, after = pipeline.prompt_template_encode.split("{}")
        module = Qwen3Model(Qwen3Config(vocab_size=4000, **SIZES[shape]))
    dropped = (0, len(reads.encode(before)))
    reading = Reading(dropped[1] + 512, before, after, dropped=dropped)
    return DecoderTextEncoder(module.eval(), reads, reading=reading, name=shape)


def table(shape: str, sentences: str, turns: int) -> Table:
    """CPU seconds of both engines in turn, their ratio, and the share of the product rate that the prefix engine reaches."""
    encoder = tower(shape)
    found = Table(title=f"{shape}, template of {encoder.reading.dropped[1]} tokens, one thread, float32: CPU seconds")
    for column in ("attack", "plain", "prefix", "plain / prefix", "of the product rate"):
        found.add_column(column)
    for name, attack, n, constraint in CASES:
        prompts = list(SENTENCES[sentences][:n])

        def seconds(
            engine: Any, attack: Attack = attack, rule: Any = constraint, prompts: list[str] = prompts
        ) -> float:
            started = process_time()
            score = Scorer(encoder, engine=engine).bind(prompts)
            attack.run(Problem.of(prompts, score, 1, constraint=rule))
            return process_time() - started

        operations = counted(encoder, lambda run=seconds: run("prefix"))
        plain, prefix = seconds("plain"), min(seconds("prefix") for _ in range(max(1, turns)))
        rate = operations / prefix / max(product_limit(encoder.config.hidden_size) for _ in range(2))
        found.add_row(name, f"{plain:.1f}", f"{prefix:.1f}", f"{plain / prefix:.1f}x", f"{rate:.0%}")
    return found


def counted(encoder: DecoderTextEncoder, run: Callable[[], float]) -> float:
    """Floating-point operations of the tokens that the forests of a run are made of."""
    build, nodes, pairs = decoder_forest.build_forest, list[int](), list[int]()

    def counting(*given: Any) -> Any:
        forest = build(*given)
        needed = forest.pairs[: int(forest.ends[-1]) + 1]
        nodes.append(len(needed))
        pairs.append(int((forest.positions[needed] + 1 + encoder.reading.dropped[1]).sum()))
        return forest

    decoder_forest.build_forest = counting
    try:
        run()
    finally:
        decoder_forest.build_forest = build
    weights = sum(each.weight.numel() for each in encoder.tower.modules() if isinstance(each, torch.nn.Linear))
    c = encoder.config
    attention = 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim
    return float(2 * weights * np.sum(nodes) + attention * np.sum(pairs))
