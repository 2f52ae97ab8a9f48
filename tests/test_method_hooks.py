"""Promises of nb_sae.method_hooks: an embedding that no module gives is caught and edited all the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nb_sae.hooks import capture, intervene

WIDTH = 6


class TwoWays(nn.Module):
    """Stands for a CLIP: an embedding that no module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)

    def encode_image(self, x: Tensor, normalize: bool = False) -> Tensor:
        x = self.body(x) * 3
        return nn.functional.normalize(x, dim=-1) if normalize else x


def test_an_embedding_is_caught_and_edited_before_it_is_normalised():
    model, x = TwoWays(), torch.randn(4, WIDTH)
    plain, unit = model.encode_image(x), model.encode_image(x, normalize=True)
    with capture(model, "image_embed") as seen, torch.no_grad():
        assert torch.equal(model.encode_image(x, True), unit)
    assert torch.equal(seen["image_embed"], plain)
    with intervene(model, {"image_embed": lambda x: x + 1}):
        torch.testing.assert_close(model.encode_image(x, normalize=True), nn.functional.normalize(plain + 1, dim=-1))
    assert "encode_image" not in model.__dict__
    assert torch.equal(model.encode_image(x), plain)


def test_embedding_hooks_may_be_removed_in_any_order_and_leave_the_users_method():
    model, x = TwoWays(), torch.randn(4, WIDTH)
    own = model.encode_image
    model.encode_image = lambda x: own(x) + 5
    expected = model.encode_image(x)
    first, second = intervene(model, {"image_embed": lambda x: x * 2}), capture(model, "image_embed")
    first.__enter__()
    seen = second.__enter__()
    with torch.no_grad():
        model.encode_image(x)
    first.__exit__(None, None, None)
    torch.testing.assert_close(seen["image_embed"], expected * 2)
    second.__exit__(None, None, None)
    assert torch.equal(model.encode_image(x), expected)
