"""The training loop that every part of the world shares: AdamW, cosine, an average of the weights, resumable.

The data of a step derive from (seed, step) alone, so a run that was killed continues as if it never stopped.
"""

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT_SECONDS = 60.0
Loss = Callable[[int, random.Random], Tensor]


def _save(path: Path, step: int, groups: Mapping[str, list[Tensor]]) -> None:
    tensors = {f"{group}.{i}": t.contiguous() for group, many in groups.items() for i, t in enumerate(many)}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": json.dumps(step)})
    partial.replace(path)


@torch.no_grad()
def _load(path: Path, groups: Mapping[str, list[Tensor]]) -> int:
    with safe_open(path, "pt") as stored:
        for group, many in groups.items():
            for i, tensor in enumerate(many):
                tensor.copy_(stored.get_tensor(f"{group}.{i}"))
        return int(json.loads(stored.metadata()["step"]))


def fit(
    name: str,
    modules: list[nn.Module],
    loss: Loss,
    *,
    steps: int,
    lr: float,
    seed: int,
    folder: Path,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
    warmup: int = 100,
    flat: float = 0.0,
    average: float = 0.0,
    report: Callable[[int], str] | None = None,
    report_every: int = 200,
) -> None:
    """Train `modules` in place for `steps` steps; `loss(step, rng)` draws its own batch.

    The rate warms up, stays for the share `flat`, then falls by a cosine. With `average` > 0 the modules end with the
    exponential average of their weights. Matrices decay, embeddings, gains and biases do not.
    A checkpoint in `folder` is written each minute and at the end, and taken up by the next call; the caller deletes it.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    spared = {
        id(p) for module in modules for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    decayed = [p for p in parameters if p.ndim > 1 and id(p) not in spared]
    rest = [p for p in parameters if p.ndim <= 1 or id(p) in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    averaged = [p.detach().clone() for p in parameters] if average else []
    buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
    for p in parameters:  # the optimiser makes its state at the first step; a checkpoint needs it now
        optimiser.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    state = [optimiser.state[p] for p in parameters]
    stored = {"weights": [p.detach() for p in parameters], "averaged": averaged, "buffers": buffers}
    stored |= {key: [s[key] for s in state] for key in ("step", "exp_avg", "exp_avg_sq")}

    checkpoint = folder / f"{name}.checkpoint.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    start = _load(checkpoint, stored) if checkpoint.exists() else 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    for module in modules:
        module.train()
    with Progress(*columns) as progress:
        bar, last = progress.add_task(name, total=steps, completed=start), monotonic()
        running: Tensor | None = None  # on the device: reading it each step would wait for the step
        for step in range(start, steps):
            done = (step - warmup) / max(1, steps - warmup)
            falling = max(0.0, (done - flat) / (1 - flat))
            rate = min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
            torch.manual_seed(seed * 1_000_003 + step)
            value = loss(step, random.Random(f"{name} {seed} {step}"))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            if averaged:
                with torch.no_grad():
                    torch._foreach_lerp_(averaged, parameters, 1 - min(average, (1 + step) / (10 + step)))
            value = value.detach()
            running = value if running is None else torch.lerp(running, value, 0.02)
            progress.update(bar, advance=1)
            if (step + 1) % report_every == 0:
                extra = ""
                if report is not None:
                    for module in modules:
                        module.eval()
                    extra = report(step + 1)
                    for module in modules:
                        module.train()
                progress.console.print(f"{name} {step + 1}/{steps} loss {float(running):.4f} {extra}")
            if monotonic() - last > CHECKPOINT_SECONDS:
                _save(checkpoint, step + 1, stored)
                last = monotonic()
        _save(checkpoint, steps, stored)
    if averaged:
        with torch.no_grad():
            torch._foreach_copy_(parameters, averaged)
    for module in modules:
        module.eval()
