"""A notebook with two dashboards, executed as `nbconvert --execute` does it, and what stock nbconvert makes of it."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent.parent
SETUP = "import nb_sae as ns\nfrom widget_fakes import fake_analysis"
PICTURES = 'ns.FeatureDashboard(fake_analysis("patches", d_sae=96), latent=3, saved=[1, 3, 5, 7])'
TEXTS = 'ns.FeatureDashboard(fake_analysis("text"), latent=2, saved=[1, 2, 3])'
SUMMARY = "FeatureDashboard of 96 latents"


def executed(*, state: bool) -> NotebookNode:
    """The executed notebook, with the widgets' state saved in it or without."""
    notebook = copy.deepcopy(_executed())
    if not state:
        del notebook.metadata["widgets"]
    return notebook


@cache
def _executed() -> NotebookNode:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in (SETUP, PICTURES, TEXTS)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    inherited = os.environ.get("PYTHONPATH", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), inherited])))
        NotebookClient(notebook, timeout=90).execute()
    return notebook
