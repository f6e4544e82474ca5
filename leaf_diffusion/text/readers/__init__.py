"""Readers of captions, a file for each family of layouts; `leaf_diffusion.text.files` chooses among them."""
