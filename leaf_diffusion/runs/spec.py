"""The identity of a run: what was asked, never where or when it was computed."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from leaf_diffusion.text.visible import visible

_PACKAGES = (
    "leaf-diffusion",
    "torch",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "numpy",
    "pillow",
    "torchmetrics",
)
_MISSING = "(absent)"


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, no NaN: equal values give equal text. Raises ValueError for what JSON cannot hold."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        text.encode()  # a lone surrogate (undecodable bytes of a command line) is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"only JSON values can be kept (text, finite numbers, lists, mappings): {error}") from error
    return text


@dataclass(frozen=True)
class RunSpec:
    """What a run computes: fingerprints, prompts, attack, seeds, sampler. Two runs with one identity have one result.

    settings: JSON values; copied, so later changes do not leak in. Raises ValueError for what JSON cannot hold.
    """

    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", json.loads(canonical_json(dict(self.settings))))

    @property
    def canonical(self) -> str:
        return canonical_json(self.settings)

    @property
    def identity(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        return {"identity": self.identity, "settings": dict(self.settings)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunSpec:
        """Inverse of to_dict. Raises ValueError when keys are missing or the recorded identity does not fit."""
        if not isinstance(data, Mapping) or not isinstance(data.get("settings"), Mapping):
            raise ValueError('a run specification holds "settings"')
        spec = cls(data["settings"])
        if data.get("identity", spec.identity) != spec.identity:
            raise ValueError("the specification was edited by hand: its recorded identity does not fit its settings")
        return spec

    def differences(self, other: RunSpec) -> list[str]:
        """One line for each setting in which `self` (asked) differs from `other` (recorded)."""
        asked, recorded = _flat(self.settings), _flat(other.settings)
        lines: list[str] = []
        for key in sorted(asked.keys() | recorded.keys()):
            new, old = asked.get(key, _MISSING), recorded.get(key, _MISSING)
            if new != old:
                lines.append(visible(f"{key}: {_short(old)} there, {_short(new)} asked"))
        return lines or [f"identity: {other.identity} there, {self.identity} asked"] * (self.identity != other.identity)


def environment(command: str | None = None) -> dict[str, object]:
    """Where a run is computed, recorded beside its specification: versions, platform, command, time (UTC)."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "command": (command or shlex.join(sys.argv)).encode(errors="backslashreplace").decode(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        merged: dict[str, str] = {}
        for key, item in value.items():
            merged |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return merged
    return {prefix: canonical_json(value)} if prefix else {}


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 22]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
