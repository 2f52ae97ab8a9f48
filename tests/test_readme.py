"""What the README shows is run as it stands, on fewer faces and for fewer steps."""

from __future__ import annotations

import re
from pathlib import Path

import nb_sae.sae.training

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_readme_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 16
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nb_sae.sae.training, "MIN_ROWS", 10_000)
    names: dict[str, object] = {}
    exec(compile(example.replace("4000", "300"), str(README), "exec"), names)
    assert "fvu" in capsys.readouterr().out
    assert (tmp_path / "runs" / "dictionary" / "dictionary.json").is_file()
    assert isinstance(names["dashboard"], nb_sae.FeatureDashboard)


def test_the_readme_names_only_files_that_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
