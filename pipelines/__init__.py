"""Diffusion pipelines whose text encoder can be exchanged, defended and attacked."""

from leaf_diffusion.pipelines.leaf_flux import LeafFluxPipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion import LeafStableDiffusionPipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion_3 import LeafStableDiffusion3Pipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion_xl import LeafStableDiffusionXLPipeline

__all__ = [
    "LeafFluxPipeline",
    "LeafStableDiffusion3Pipeline",
    "LeafStableDiffusionPipeline",
    "LeafStableDiffusionXLPipeline",
]
