"""The text-to-image evaluation, stage by stage."""
