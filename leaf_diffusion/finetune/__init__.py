"""TextFARE finetuning: a text tower that keeps its embeddings under character edits."""
