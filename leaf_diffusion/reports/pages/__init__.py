"""The page of each experiment."""
