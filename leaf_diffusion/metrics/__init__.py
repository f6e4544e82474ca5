"""Metrics over injected models and features: values in, values out, nothing is downloaded."""

from leaf_diffusion.metrics.clip_score import ClipModel, clip_score, clip_score_from_features, clip_scores
from leaf_diffusion.metrics.cmmd import cmmd
from leaf_diffusion.metrics.distribution import Distance
from leaf_diffusion.metrics.drift import feature_drift, pixel_rmse
from leaf_diffusion.metrics.frechet import frechet_distance
from leaf_diffusion.metrics.intervals import FEWEST, SIGNIFICANT, Interval, holm, mean_interval
from leaf_diffusion.metrics.kid import kid

__all__ = [
    "FEWEST",
    "SIGNIFICANT",
    "ClipModel",
    "Distance",
    "Interval",
    "clip_score",
    "clip_score_from_features",
    "clip_scores",
    "cmmd",
    "feature_drift",
    "frechet_distance",
    "holm",
    "kid",
    "mean_interval",
    "pixel_rmse",
]
