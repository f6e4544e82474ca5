"""The settings of a transformers configuration that decide the states of a tower."""

from __future__ import annotations

from typing import Any

IDLE = ("dropout", "initializer", "use_cache", "dtype", "transformers_version", "architectures", "name_or_path", "id2label",
        "label2id", "output_", "return_dict", "attn_implementation", "experts_implementation")  # fmt: skip
"""Parts of the names of settings that change no state of a tower that is not trained."""


def settings(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """The settings of a configuration (`config.to_dict()`) that decide its tower's states, those of parts behind a dot."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if any(part in str(key) for part in IDLE):
            continue
        found |= settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
