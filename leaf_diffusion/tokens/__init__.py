"""Tokenizers, and how edits become token rows."""
