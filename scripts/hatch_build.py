"""Build hook of the package: the widget scripts are built where they are due, the tutorials go into the wheel.

Hatchling loads this file for wheels, source archives and editable installs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_widgets

NOTEBOOKS = "[0-9][0-9]_*.ipynb"
"""The tutorials among the files of `notebooks/`."""


class WidgetBuildHook(BuildHookInterface[Any]):
    """Make the build complete before hatchling packs it."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node as a Python package, where scripts must be built and the machine has no Node."""
        if build_widgets.is_current(Path(self.root)) or build_widgets.machine_node() is not None:
            return []
        return [build_widgets.NODE_PACKAGE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the scripts; in a wheel that is not editable, include the tutorials as assets.

        Raises:
            WidgetBuildError: The scripts cannot be built.
            FileNotFoundError: The tutorials are missing.
        """
        root = Path(self.root)
        build_widgets.build(root)
        if self.target_name != "wheel" or version == "editable":
            return
        tutorials = sorted((root / "notebooks").glob(NOTEBOOKS))
        if not tutorials:
            raise FileNotFoundError("notebooks/ holds no tutorial, and the wheel ships them. Restore them with git.")
        for source in tutorials:
            build_data["force_include"][str(source)] = f"nb_sae/assets/notebooks/{source.name}"
