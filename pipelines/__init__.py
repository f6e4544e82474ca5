"""Diffusion pipelines whose text encoder can be exchanged, defended and attacked."""

from leaf_diffusion.pipelines.leaf_stable_diffusion import LeafStableDiffusionPipeline

__all__ = ["LeafStableDiffusionPipeline"]
