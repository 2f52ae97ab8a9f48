"""Promises of nb_sae.hooks on plain torch modules."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError, HookError, ShapeError
from nb_sae.hooks import capture, find_module, intervene, probe, run_to
from nb_sae.types import Edit

WIDTH = 6
Pair = namedtuple("Pair", "hidden extra")


@dataclass
class Output:
    last_hidden_state: Tensor
    note: str = "kept"


class Counting(nn.Module):
    """Passes its input on and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Wrap(nn.Module):
    """A linear layer whose output comes in a container."""

    def __init__(self, make) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(WIDTH, WIDTH), make

    def forward(self, x: Tensor):
        return self.make(self.linear(x))


class Tower(nn.Module):
    def __init__(self, make=lambda x: x) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.block = Wrap(make)
        self.inplace = nn.ReLU(inplace=True)
        self.last = Counting()

    def forward(self, x: Tensor) -> Tensor:
        self.given = self.block(self.first(x))
        hidden = self.given if isinstance(self.given, Tensor) else getattr(self.given, "last_hidden_state", None)
        hidden = self.given[0] if hidden is None else hidden
        return self.last(self.inplace(hidden))


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().eval()


def batch(size: int = 3, tokens: int = 5) -> Tensor:
    return torch.randn(size, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def hook_count(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def interrupt(error: type[BaseException], during: list[int], module: nn.Module) -> None:
    during.append(hook_count(module))
    raise error


CONTAINERS = {
    "tuple": lambda x: (x, "extra"),
    "list": lambda x: [x, "extra"],
    "named tuple": lambda x: Pair(x, "extra"),
    "model output": Output,
}


def test_capture_gives_what_the_module_returned(tower):
    with capture(tower, ["first", "block.linear"]) as seen, torch.no_grad():
        tower(batch())
    expected = tower.first(batch())
    torch.testing.assert_close(seen["first"], expected, rtol=0, atol=0)
    torch.testing.assert_close(seen["block.linear"], tower.block.linear(expected), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_capture_reads_the_tensor_inside_a_container(kind):
    tower = Tower(CONTAINERS[kind])
    with capture(tower, "block") as seen, torch.no_grad():
        tower(batch())
    torch.testing.assert_close(seen["block"], tower.block.linear(tower.first(batch())), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_intervene_gives_back_the_same_kind_of_container(kind):
    tower = Tower(CONTAINERS[kind])
    plain = tower(batch())
    with intervene(tower, {"block": lambda x: x + 1}):
        changed = tower(batch())
        given = tower.given
    assert type(given) is type(CONTAINERS[kind](batch()))
    assert "kept" in repr(given) or "extra" in repr(given)
    assert not torch.equal(plain, changed)


def test_capture_is_not_altered_by_a_later_step_in_place(tower):
    with capture(tower, "block.linear") as seen, torch.no_grad():
        tower(batch())
    assert (seen["block.linear"] < 0).any()  # the ReLU in place would have left none


def test_capture_refuses_what_was_changed_in_place_under_autograd(tower):
    with pytest.raises(HookError, match=r"in place.*no_grad"), capture(tower, "block.linear"):
        tower(batch())


def test_capture_keeps_the_way_for_gradients(tower):
    with capture(tower, "first") as seen:
        out = tower(batch())
    (gradient,) = torch.autograd.grad(out.sum(), seen["first"])
    assert gradient.abs().sum() > 0


def test_capture_keeps_the_last_call(tower):
    with capture(tower, "first") as seen, torch.no_grad():
        tower(batch())
        tower(batch() * 2)
    torch.testing.assert_close(seen["first"], tower.first(batch() * 2))


def test_stop_ends_the_pass_after_the_last_site(tower):
    reached = []
    with capture(tower, ["block", "first"], stop=True) as seen, torch.no_grad():
        tower(batch())
        reached.append("statement after the call")
    assert set(seen) == {"first", "block"}
    assert tower.last.calls == 0
    assert reached == []


def test_run_to_stops_and_returns_the_sites_in_the_order_asked_for(tower):
    rows = run_to(tower, ["block", "first"], lambda: tower(batch()))
    assert list(rows) == ["block", "first"]
    assert tower.last.calls == 0


def test_run_to_names_the_site_that_never_ran(tower):
    with pytest.raises(HookError, match="without running 'last'"):
        run_to(tower, ["first", "last"], lambda: tower.first(batch()))


def test_run_to_inside_another_capture_stops_only_itself(tower):
    with capture(tower, ["first", "last"], stop=True) as outer, torch.no_grad():
        run_to(tower, ["block"], lambda: tower(batch()))
        assert tower.last.calls == 0
        tower(batch())
    assert set(outer) == {"first", "last"}


def test_an_outer_stop_passes_through_an_inner_one(tower):
    with capture(tower, "first", stop=True) as outer, torch.no_grad():
        run_to(tower, ["block"], lambda: tower(batch()))
        pytest.fail("the outer block goes on after its own stop")
    assert set(outer) == {"first"}
    assert hook_count(tower) == 0


def test_asking_for_a_site_that_did_not_run_says_so(tower):
    with capture(tower, "first") as seen:
        pass
    with pytest.raises(HookError, match="Nothing was caught at 'first'"):
        seen["first"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("context", ["capture", "intervene"])
def test_hooks_are_removed_however_the_block_ends(tower, error, context):
    users = tower.first.register_forward_hook(lambda module, args, output: None)
    before = hook_count(tower)
    manager = (
        capture(tower, ["first", "last"]) if context == "capture" else intervene(tower, {"first": torch.zeros_like})
    )
    during = []
    with pytest.raises(error), manager:
        interrupt(error, during, tower)
    assert during[0] > before
    assert hook_count(tower) == before == 1
    users.remove()


def test_hooks_are_removed_when_a_later_site_is_unknown(tower):
    with pytest.raises(HookError), capture(tower, ["first", "nothing"]):
        pass
    assert hook_count(tower) == 0


def test_hooks_are_removed_when_the_model_fails(tower):
    with pytest.raises(RuntimeError):
        run_to(tower, ["last"], lambda: tower(torch.randn(2, 3, WIDTH + 1)))
    assert hook_count(tower) == 0


def test_unknown_site_offers_the_closest_names(tower):
    with pytest.raises(HookError, match=r"Tower has no module 'block\.linaer'\. Closest: block\.linear"):
        find_module(tower, "block.linaer")


def test_hook_points_with_aliases_are_found_before_modules(tower):
    tower.hook_dict = {"hook_alias": tower.first}
    assert find_module(tower, "hook_alias") is tower.first
    rows = run_to(tower, "hook_alias", lambda: tower(batch()))
    torch.testing.assert_close(rows["hook_alias"], tower.first(batch()))


def test_no_site_at_all_is_refused(tower):
    with pytest.raises(ConfigError, match="No site"), capture(tower, []):
        pass


class TokenFirst(nn.Module):
    """A transformer of the old layout: its blocks see (token, batch, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.transpose(0, 1)).transpose(0, 1)


def test_token_first_layout_is_refused_by_name():
    with pytest.raises(ShapeError, match=r"\(5, 3, 6\).*batch of 3.*looks like \(token, batch, width\)"):
        run_to(module := TokenFirst(), "block", lambda: module(batch()))


def test_probe_tells_token_first_from_batch_first(tower):
    seen = probe(model := TokenFirst(), model, batch(3, 5))
    assert "looks like (token, batch, width)" in seen["block"].problem
    assert probe(tower, tower, batch(3, 5))["block"].shape == (3, 5, WIDTH)


def test_probe_lists_modules_in_the_order_they_finish(tower):
    assert list(probe(tower, tower, batch())) == ["first", "block.linear", "block", "inplace", "last"]
    assert hook_count(tower) == 0


def test_probe_refuses_a_module_that_runs_twice():
    shared = nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(shared, nn.Identity(), shared)
    assert "runs 2 times" in probe(model, model, batch())["0"].problem


def test_whole_numbers_and_other_axes_are_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole, self.deep = Counting(), Counting()

        def forward(self, x: Tensor) -> Tensor:
            self.whole(x.long())
            return self.deep(x[:, :, None, None, :])

    model = Odd()
    with pytest.raises(ShapeError, match=r"torch\.int64"):
        run_to(model, "whole", lambda: model(batch()))
    with pytest.raises(ShapeError, match=r"gives \(3, 5, 1, 1, 6\)"):
        run_to(model, "deep", lambda: model(batch()))


def test_a_wrong_batch_size_is_noticed_only_inside_the_models_own_call(tower):
    with capture(tower, "first") as seen, torch.no_grad():
        tower(batch(3))
        tower.first(batch(4))
    assert len(seen["first"]) == 4


def test_identity_edit_changes_no_bit(tower):
    expected = tower(batch())
    with intervene(tower, {"first": lambda x: x, "block": lambda x: x.clone()}):
        assert torch.equal(tower(batch()), expected)
    assert torch.equal(tower(batch()), expected)


def test_zeroing_a_site_gives_what_follows_from_zero(tower):
    with intervene(tower, {"first": torch.zeros_like}):
        out = tower(batch())
    expected = tower.block.linear(torch.zeros(3, 5, WIDTH)).relu()
    torch.testing.assert_close(out, expected)


def test_edits_of_one_site_apply_in_order(tower):
    edits = [Edit("first", lambda x: x * 0), Edit("first", lambda x: x + 2)]
    with intervene(tower, edits), capture(tower, "first") as seen, torch.no_grad():
        tower(batch())
    assert (seen["first"] == 2).all()


def test_an_edit_in_place_stays_with_the_edited_site():
    model = nn.Sequential(nn.Identity(), nn.Identity())  # both give the very tensor they got

    def zero(x: Tensor) -> Tensor:
        x[:] = 0
        return x

    given = batch()
    with intervene(model, {"1": zero}):
        assert (model(given) == 0).all()
    assert torch.equal(given, batch())


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda x: x[:, :2], r"gave shape \(3, 2, 6\); expected \(3, 5, 6\)"),
        (lambda x: x.double(), r"gave dtype torch\.float64; expected torch\.float32"),
        (lambda x: x.to("meta"), r"gave device meta; expected cpu"),
        (lambda x: None, "gave a NoneType"),
    ],
)
def test_an_edit_that_changes_the_form_is_refused(tower, apply, message):
    with pytest.raises(ShapeError, match=message), intervene(tower, Edit("first", apply)):
        tower(batch())
    assert hook_count(tower) == 0


@dataclass
class Stand:
    """Stands for a dictionary: `splice` says what it puts into its site."""

    site: str
    value: float

    def splice(self, *, site: str | None = None) -> Edit:
        return Edit(site or self.site, lambda x: torch.full_like(x, self.value))


def test_what_can_splice_itself_in_is_an_edit(tower):
    for edits in (Stand("first", 2.0), [Stand("first", 2.0)], iter([Edit("first", torch.neg), Stand("first", 2.0)])):
        with intervene(tower, edits), capture(tower, "first") as seen, torch.no_grad():
            tower(batch())
        assert (seen["first"] == 2).all()
    assert hook_count(tower) == 0


def test_in_a_mapping_a_dictionary_stands_at_the_site_it_is_named_with(tower):
    edits = {"block.linear": Stand("", 2.0)}
    with intervene(tower, edits), capture(tower, ["first", "block.linear"]) as seen, torch.no_grad():
        tower(batch())
    assert (seen["block.linear"] == 2).all()
    assert not (seen["first"] == 2).any()


@pytest.mark.parametrize("given", [[torch.zeros_like], torch.zeros_like, "first", 3, [Stand], {"first": 3}])
def test_something_else_among_the_edits_is_refused(tower, given):
    with pytest.raises(ConfigError, match=r"expected nb_sae\.Edit.* or a Dictionary"), intervene(tower, given):
        pass
    assert hook_count(tower) == 0


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 2, stride=2)
        self.second = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_feature_maps_are_tokens_row_by_row_and_go_back(layout):
    model, pixels = Maps(), torch.randn(2, 3, 8, 12).contiguous(memory_format=layout)
    expected = model(pixels)
    rows = run_to(model, "conv", lambda: model(pixels))["conv"]
    assert rows.shape == (2, 4 * 6, WIDTH)
    torch.testing.assert_close(rows[:, 1 * 6 + 2], model.conv(pixels)[:, :, 1, 2])
    given = []
    seen = model.second.register_forward_pre_hook(lambda module, args: given.append(args[0].stride()))
    model(pixels)
    with intervene(model, {"conv": lambda x: x.contiguous()}):
        assert torch.equal(model(pixels), expected)
    seen.remove()
    assert given[0] == given[1]  # the same layout, so the next convolution computes the same bits

    def blank_one(x: Tensor) -> Tensor:
        x[:, 1 * 6 + 2] = 0
        return x

    with intervene(model, {"conv": blank_one}):
        changed = (model(pixels) != expected).any(1)
    assert changed[:, 1, 2].all()
    assert changed.sum() == 2


def test_channels_last_axes_are_not_taken_for_a_feature_map():
    class Axes(Maps):
        def __init__(self) -> None:
            super().__init__()
            self.moved = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.moved(self.conv(x).permute(0, 2, 3, 1))

    model = Axes()
    with pytest.raises(ShapeError, match=r"\(2, 4, 4, 6\), which looks like \(batch, h, w, channel\)"):
        run_to(model, "moved", lambda: model(torch.randn(2, 3, 8, 8)))


def test_four_axes_without_convolutions_are_no_feature_map():
    model = nn.Sequential(nn.Identity())
    with pytest.raises(ShapeError, match=r"\(2, 3, 8, 8\)"):
        run_to(model, "0", lambda: model(torch.randn(2, 3, 8, 8)))


def test_what_is_no_module_is_refused():
    with pytest.raises(HookError, match=r"expected a torch\.nn\.Module"), capture("model", "first"):
        pass
