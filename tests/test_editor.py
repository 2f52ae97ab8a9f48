"""What a concept dashboard asks of its editor, on latents whose directions are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import nb_sae as ns
from nb_sae.concepts.editor import ConceptEditor
from nb_sae.errors import ConfigError, StoreError

WIDTH, ROWS = 16, 400


class AxisClip:
    """A text "axis 3" lies on axis 3."""

    logit_scale = 10.0

    def encode_text(self, texts, normalize=False):
        return torch.stack([torch.eye(WIDTH)[int(text.split()[1])] for text in texts])


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Row i has axis 0, and every fourth row axis 5 as well."""
    x = 0.2 * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).abs()
    x[:, 0] += 2
    x[::4, 5] += 3
    return x


@pytest.fixture(scope="module")
def dictionary() -> ns.Dictionary:
    """One latent per axis, and a top-k that keeps all of them."""
    eye = torch.eye(WIDTH)
    return ns.Dictionary.from_weights(eye, torch.zeros(WIDTH), eye, torch.zeros(WIDTH), budgets=(WIDTH,))


@pytest.fixture
def editor(dictionary, rows) -> ConceptEditor:
    store = ns.ActivationStore.from_tensor(rows)
    return ConceptEditor(dictionary, store, AxisClip(), prompts=["axis 5", "axis 0"], queries=[1, 2], hits=20)


def test_raising_a_latent_finds_the_rows_that_have_it_and_its_prompt(editor):
    before, after = editor.edit(1, {}), editor.edit(1, {5: 3.0})
    assert all(row % 4 for row in before.hits["row"])
    assert all(row % 4 == 0 for row in after.hits["row"])
    assert after.probabilities[0] > 0.8 > 0.1 > before.probabilities[0]
    assert sum(after.probabilities) == pytest.approx(1)
    assert before.cosine == pytest.approx(1, abs=1e-6)
    assert after.cosine < 0.8
    assert editor.high(5) == pytest.approx(3.6, abs=0.4)


def test_hits_are_the_nearest_rows_by_brute_force_without_the_row_itself(editor, rows):
    unit = torch.nn.functional.normalize(rows, dim=-1)
    scores = unit @ unit[2]
    scores[2] = -1
    expected = scores.topk(20)
    found = editor.edit(2, {}).hits
    assert found["row"].to_list() == expected.indices.tolist()
    torch.testing.assert_close(torch.tensor(found["score"].to_list()), expected.values, rtol=0, atol=1e-6)


def test_an_edit_that_changes_nothing_changes_nothing(editor, rows):
    own = float(editor.dictionary.encode(rows[1:2])[0, 5])
    assert editor.edit(1, {5: own}).hits.equals(editor.edit(1, {}).hits)
    latent, act = editor.edit(4, {}).active[0]
    assert latent == 5
    assert act == pytest.approx(float(rows[4, 5]), abs=1e-5)


def test_what_an_editor_cannot_work_with_is_refused(dictionary, rows):
    store = ns.ActivationStore.from_tensor(rows)
    with pytest.raises(ConfigError, match="two or more"):
        ConceptEditor(dictionary, store, AxisClip(), prompts=["axis 5"])
    with pytest.raises(ConfigError, match="clip="):
        ConceptEditor(dictionary, store, prompts=["axis 5", "axis 0"])
    with pytest.raises(ConfigError, match="row=400"):
        ConceptEditor(dictionary, store, queries=[400])
    several = SimpleNamespace(rows=store.rows.with_columns(input_id=store.rows["input_id"] // 2), site=store.site)
    quiet = ns.Dictionary.from_weights(*[getattr(dictionary, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")])
    quiet.check = lambda source: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreError, match="several rows per input"):
        ConceptEditor(quiet, several)  # pyright: ignore[reportArgumentType]


def test_without_prompts_and_pictures_it_still_retrieves(dictionary, rows):
    editor = ConceptEditor(dictionary, ns.ActivationStore.from_tensor(rows), hits=3, seed=4)
    answer = editor.edit(editor.another(), {})
    assert answer.probabilities == ()
    assert answer.hits.height == 3
    assert editor.pictures([0, 1]).is_empty()
    assert len(set(editor.queries)) == 6
