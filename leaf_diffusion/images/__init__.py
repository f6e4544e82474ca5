"""The one reader of images."""
