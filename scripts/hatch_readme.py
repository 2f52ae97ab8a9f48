"""Metadata hook of the package: the README as a package index shows it, where links beside the file lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^\]]*\])\((?!https?://|#|mailto:)(?P<path>[^)\s]+)\)")


def absolute(readme: str, repository: str) -> str:
    """The same text with links to files made links into the repository.

    Args:
        readme: Markdown with links relative to the repository's root.
        repository: Address of the repository, without a slash at the end.
    """

    def lead(found: re.Match[str]) -> str:
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}{found['text']}({repository}/{kind}/main/{found['path']})"

    return LINK.sub(lead, readme)


class ReadmeHook(MetadataHookInterface):
    """Hand the README over with links that work anywhere."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` from README.md and the address under `project.urls`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata["urls"]["Repository"]
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
