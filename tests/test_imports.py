"""What `import nb_sae` costs and what it offers."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import nb_sae

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "open_clip", "transformers", "transformer_lens", "polars", "numpy", "plotly", "anywidget", "PIL")


def run(snippet: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, check=True, timeout=120, cwd=ROOT
    ).stdout


def test_import_nb_sae_imports_nothing_heavy():
    loaded = json.loads(run("import sys, json, nb_sae; print(json.dumps(sorted(sys.modules)))"))
    assert "nb_sae" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_import_nb_sae_leaves_the_users_warnings_logging_and_seeds_alone():
    before_after = """
import logging, random, warnings
def state():
    root = logging.getLogger()
    return random.getstate(), list(warnings.filters), root.level, list(root.handlers)
before = state()
import nb_sae
print(before == state())
"""
    assert run(before_after).strip() == "True"


@pytest.mark.parametrize("name", nb_sae.__all__)
def test_every_public_name_resolves(name):
    assert getattr(nb_sae, name) is not None


def test_public_names_are_the_ones_that_type_checkers_see():
    """`_HOME` and the TYPE_CHECKING block state the same thing twice; they must not drift apart."""
    source = (ROOT / "nb_sae" / "__init__.py").read_text()
    seen = {
        line.rpartition(" as ")[2]
        for line in source.splitlines()
        if line.startswith("    from nb_sae") and " as " in line
    }
    assert seen == set(nb_sae.__all__) - {"__version__"}


def test_unknown_name_offers_the_closest():
    with pytest.raises(AttributeError, match=r"no 'load_clipp'. Closest: load_clip"):
        _ = nb_sae.load_clipp  # pyright: ignore[reportAttributeAccessIssue]


def test_dir_lists_the_public_names_before_they_are_used():
    names = json.loads(run("import json, nb_sae; print(json.dumps(dir(nb_sae)))"))
    assert set(nb_sae.__all__) <= set(names)


def test_import_time_bench_stays_under_its_bound():
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "import_time.py"), "5"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_public_function_shares_its_name_with_a_module():
    """Importing such a module would put it in the place of the function."""
    clashes = [name for name, home in nb_sae._HOME.items() if ":" in home and find_spec(f"nb_sae.{name}")]
    assert clashes == []
