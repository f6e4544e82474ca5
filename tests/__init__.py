"""A package, so that tests share ``tests.tiny`` and ``tests.shapes`` (another install may bring a `tests` of its own)."""
