"""What a release needs before anything is built: versions that agree, a citation, notices, a safe workflow."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import nb_sae

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# The formatter's binaries for machines other than Linux: the lock was made from a registry that has no hash of them.
WITHOUT_INTEGRITY = "node_modules/@biomejs/cli-"
# What Colab's own packages hold (2025): an installation that replaces them makes its runtime restart or crash.
COLAB = {"ipykernel": "6.17.1", "jupyter_client": "7.4.9", "ipywidgets": "7.7.1"}


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import release_check  # pyright: ignore[reportMissingImports]

    return release_check


def test_version_is_the_same_wherever_it_stands(release):
    assert release.problems(release.stated()) == []
    assert release.stated().package == nb_sae.__version__


def test_a_tag_releases_its_version_on_a_stated_day(release):
    ready = release.Stated("1.2.3", "1.2.3", "2030-01-31", "1.2.3", "2030-01-31")
    assert release.problems(ready, "v1.2.3") == []
    assert "Tag its commit as v1.2.3" in release.problems(ready, "v1.2.4")[0]
    assert "Put the day" in release.problems(replace(ready, day="unreleased", citation_day="unreleased"), "v1.2.3")[0]
    assert "date-released: 2030-01-31" in release.problems(replace(ready, citation_day=""), "v1.2.3")[0]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("package", "1.2", "MAJOR.MINOR.PATCH"),
        ("changelog", "1.2.2", "CHANGELOG.md begins with '1.2.2'"),
        ("citation", "", "CITATION.cff says version ''"),
    ],
)
def test_a_version_that_disagrees_is_named(release, field, value, says):
    found = replace(release.Stated("1.2.3", "1.2.3", "unreleased", "1.2.3", ""), **{field: value})
    assert any(says in line for line in release.problems(found))


def test_release_check_reads_the_versions_from_the_files(release, tmp_path):
    (tmp_path / "nb_sae").mkdir()
    (tmp_path / "nb_sae/__init__.py").write_text('"""x"""\n\n__version__ = "2.0.1"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 2.0.1 (2030-02-01)\n\n## 2.0.0 (2030-01-01)\n")
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\nversion: "2.0.1"\ndate-released: 2030-02-01\n')
    assert release.stated(tmp_path) == release.Stated("2.0.1", "2.0.1", "2030-02-01", "2.0.1", "2030-02-01")


def test_citation_follows_its_format():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    known = {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
        "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
        "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert {"authors", "cff-version", "message", "title"} <= set(citation) <= known
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in {"software", "dataset"}
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]
    assert all(isinstance(word, str) for word in citation["keywords"])
    for work in [citation, *citation["references"]]:
        assert work["title"]
        assert work["authors"]
        for author in work["authors"]:
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert all(isinstance(work["year"], int) and work["type"] for work in citation["references"])


@pytest.mark.parametrize("name", COLAB)
def test_installing_on_colab_leaves_its_own_jupyter_as_it_is(name):
    (ours,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == name]
    assert ours.specifier.contains(COLAB[name])


def test_every_address_of_the_project_is_in_its_repository():
    repository = PROJECT["urls"]["Repository"]
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w.-]+", repository)
    assert all(address.startswith(repository) for address in PROJECT["urls"].values())
    cloned = re.findall(r"git clone (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert cloned == [repository]


def workflow() -> dict:
    text = (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8")
    assert "secrets." not in text
    return yaml.safe_load(text)


def test_publish_workflow_may_write_nothing_but_its_token():
    found = workflow()
    assert found["permissions"] == {"contents": "read"}
    jobs = found["jobs"]
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"]["name"] == "pypi"
    given = [step.get("with", {}) for step in jobs["publish"]["steps"]]
    assert not [one for one in given if {"password", "user", "repository-url"} & set(one)]


def test_publish_workflow_publishes_what_was_checked_and_only_for_a_tag():
    found = workflow()
    # YAML 1.1 reads the key `on` as a truth value.
    assert found[True] == {"push": {"tags": ["v*"]}, "workflow_dispatch": None}
    publish = found["jobs"]["publish"]
    assert set(publish["needs"]) == {"test", "build"}
    assert publish["if"] == "github.event_name == 'push' && github.ref_type == 'tag'"
    assert not [step for step in publish["steps"] if "run" in step]
    up = next(step for step in found["jobs"]["build"]["steps"] if "upload-artifact" in step.get("uses", ""))
    down = next(step for step in publish["steps"] if "download-artifact" in step["uses"])
    assert (up["with"]["name"], up["with"]["path"]) == (down["with"]["name"], down["with"]["path"])


def test_publish_workflow_runs_only_targets_that_the_makefile_has():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    assert sorted(commands) == ["make release-check", "make test"]
    assert {command.removeprefix("make ") for command in commands} <= set(targets)


def test_scripts_are_bundled_from_nothing_but_our_own_sources():
    package = json.loads((ROOT / "widgets_js/package.json").read_text(encoding="utf-8"))
    assert "dependencies" not in package
    assert package["private"] is True
    named = [
        f"{path.name}: {name}"
        for path in (ROOT / "widgets_js/src").rglob("*.ts")
        for name in re.findall(r'(?:\} from|^import) "([^"]+)";', path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if not name.startswith(".")
    ]
    assert named == []
    assert "node_modules" not in (ROOT / "widgets_js/build.mjs").read_text(encoding="utf-8")


def test_lock_file_holds_the_hash_of_every_package_that_a_build_installs():
    lock = json.loads((ROOT / "widgets_js/package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert len(lock) > 100
    bare = [name for name, package in lock.items() if name and "integrity" not in package]
    assert [name for name in bare if not name.startswith(WITHOUT_INTEGRITY)] == []
    assert all(lock[name].get("optional") and lock[name].get("dev") for name in bare)


def test_readme_of_an_index_links_into_the_repository(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import hatch_readme  # pyright: ignore[reportMissingImports]

    text = "![a b](docs/a.png) [c](docs/c.md) [d](https://x.org/d) [e](#e)"
    assert hatch_readme.absolute(text, "https://h.org/o/r") == (
        "![a b](https://h.org/o/r/raw/main/docs/a.png) [c](https://h.org/o/r/blob/main/docs/c.md) "
        "[d](https://x.org/d) [e](#e)"
    )
