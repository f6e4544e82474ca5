"""Diffusion pipelines whose text encoder can be exchanged, defended and attacked."""

from leaf_diffusion.pipelines.leaf_stable_diffusion import LeafStableDiffusionPipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion_xl import LeafStableDiffusionXLPipeline

__all__ = ["LeafStableDiffusionPipeline", "LeafStableDiffusionXLPipeline"]
