"""The embedded world: a Stable Diffusion small enough to ship, whose every part this package trained."""

from leaf_diffusion.world.captions import WorldPrompt, world_prompts
from leaf_diffusion.world.figures import real_images
from leaf_diffusion.world.judge import SceneJudge
from leaf_diffusion.world.judge_clip import load_judge_clip
from leaf_diffusion.world.paths import pipeline_path
from leaf_diffusion.world.sources import load_clip, seen_tokens

__all__ = [
    "SceneJudge",
    "WorldPrompt",
    "load_clip",
    "load_judge_clip",
    "pipeline_path",
    "real_images",
    "seen_tokens",
    "world_prompts",
]
