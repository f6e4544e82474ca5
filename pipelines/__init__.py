"""Diffusion pipelines whose text encoders can be exchanged, defended and attacked."""

from leaf_diffusion.pipelines.leaf_flux import LeafFluxPipeline
from leaf_diffusion.pipelines.leaf_flux_2_klein import LeafFlux2KleinPipeline
from leaf_diffusion.pipelines.leaf_lumina_2 import LeafLumina2Pipeline
from leaf_diffusion.pipelines.leaf_pixart_alpha import LeafPixArtAlphaPipeline
from leaf_diffusion.pipelines.leaf_pixart_sigma import LeafPixArtSigmaPipeline
from leaf_diffusion.pipelines.leaf_qwen_image import LeafQwenImagePipeline
from leaf_diffusion.pipelines.leaf_sana import LeafSanaPipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion import LeafStableDiffusionPipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion_3 import LeafStableDiffusion3Pipeline
from leaf_diffusion.pipelines.leaf_stable_diffusion_xl import LeafStableDiffusionXLPipeline
from leaf_diffusion.pipelines.leaf_z_image import LeafZImagePipeline

__all__ = [
    "LeafFlux2KleinPipeline",
    "LeafFluxPipeline",
    "LeafLumina2Pipeline",
    "LeafPixArtAlphaPipeline",
    "LeafPixArtSigmaPipeline",
    "LeafQwenImagePipeline",
    "LeafSanaPipeline",
    "LeafStableDiffusion3Pipeline",
    "LeafStableDiffusionPipeline",
    "LeafStableDiffusionXLPipeline",
    "LeafZImagePipeline",
]
