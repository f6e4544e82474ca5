"""Tasks: texts, images, retrieval."""
