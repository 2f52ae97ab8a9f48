"""Hooks on any torch module: catch what a site gives, stop the pass there, or replace it; always removed.

A site is a module path, a hook name of an object with a `hook_dict` (transformer_lens), or one of the embeddings that
no module gives (`image_embed`, `text_embed`): those are read where the model's own `encode_*` method returns.
What a site gives is read as rows, see `nb_sae.hook_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError, HookError, ShapeError, closest
from nb_sae.hook_rows import (
    EXPECTED,
    Probed,
    describe,
    from_rows,
    holds_maps,
    put_back,
    shape_problem,
    tensor_of,
    to_rows,
)
from nb_sae.method_hooks import Handle, hook_method
from nb_sae.types import Edit

_EMBED_METHODS = {"image_embed": "encode_image", "text_embed": "encode_text"}
"""The embeddings that are the return value of a method. A wrapper may say otherwise in `pseudo_sites`."""


class Spliced(Protocol):
    """What stands in for the activations of a site of its own: a `Dictionary`."""

    def splice(self, *, site: str | None = None) -> Edit:
        """The edit that puts its reconstruction into the model; None: at its own site."""
        ...


Edits = Edit | Spliced | Sequence[Edit | Spliced] | Mapping[str, Callable[[Tensor], Tensor] | Spliced]
"""What `intervene` takes."""


class _Stop(BaseException):
    """Ends a forward pass. Not an `Exception`, so that no `except Exception` inside a model swallows it."""


class Captured(dict[str, Tensor]):
    """Site → rows of the last call. Asking for a site that has not run says so."""

    def __missing__(self, site: str) -> Tensor:
        raise HookError(
            f"Nothing was caught at {site!r}: it was not asked for, or the module has not run. Caught so far: "
            f"{', '.join(self) or 'none'}. Run the model inside the with block, or choose a site from hook_names()."
        )


def root_module(model: Any) -> nn.Module:
    """The torch module of a `HookedModel`, or the module itself. Raises `HookError` for anything else."""
    root = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if not isinstance(root, nn.Module):
        raise HookError(
            f"Cannot hook a {type(model).__name__}: expected a torch.nn.Module or a model from load_clip() or "
            "load_lm(). Pass the module itself."
        )
    return root


def find_module(model: Any, name: str) -> nn.Module:
    """The module at a hook name or a module path.

    Raises:
        HookError: There is none; the message offers the closest names.
    """
    root = root_module(model)
    hooks = hook_points(root)
    if name in hooks:
        return hooks[name]
    if name:
        try:
            return root.get_submodule(name)
        except AttributeError:
            pass
    names = [*hooks, *(path for path, _ in root.named_modules() if path), *_pseudo_sites(model)]
    listing = "model.hook_names()" if hasattr(model, "hook_names") else "dict(model.named_modules())"
    raise HookError(f"{display_name(model)} has no module {name!r}. {closest(name, names)}List all with {listing}.")


def hook_points(root: nn.Module) -> Mapping[str, nn.Module]:
    """The named hook points of a transformer_lens model, aliases included; empty for any other module."""
    hooks = getattr(root, "hook_dict", None)
    return hooks if isinstance(hooks, Mapping) else {}


def display_name(model: Any) -> str:
    """How messages call a model."""
    name = getattr(model, "name", None)
    return name if isinstance(name, str) and name else type(model).__name__


@contextmanager
def capture(model: Any, sites: str | Sequence[str], *, stop: bool = False) -> Iterator[Captured]:
    """Catch what the model gives at `sites` while the block runs.

    Args:
        model: A `HookedModel`, or any `torch.nn.Module` that you call inside the block.
        sites: Module paths, hook names, or `image_embed` / `text_embed`.
        stop: End the forward pass after the last of the sites has been seen. The forward call then does not return:
            the block is left at that point, and statements after the call inside the block do not run. Each site
            gives its first call.

    Yields:
        Site → rows of the last call. The model's own tensor where autograd follows it, a copy otherwise (a model may
        change its activations in place later). Hooks are removed when the block ends, however it ends.

    Raises:
        HookError: Unknown site, or a tensor that autograd follows was changed in place after it was caught.
        ShapeError: A site gives something that cannot be read as rows.
    """
    names = _site_list(sites)
    seen, versions, batches, halt = Captured(), {}, set[int](), _Stop()

    def record(site: str) -> Callable[[Any], None]:
        def on_output(output: Any) -> None:
            tensor = _readable(output, model=model, site=site, batches=batches)
            done = stop and len(seen.keys() | {site}) == len(names)
            rows = to_rows(tensor)
            seen[site] = rows if rows.requires_grad or done else rows.clone()
            if rows.requires_grad:
                versions[site] = (tensor, tensor._version)
            if done:
                raise halt

        return on_output

    try:
        with ExitStack() as installed:
            _require_rows(model, names)
            installed.enter_context(_watch_batch(root_module(model), batches))
            for site in names:
                installed.callback(_install(model, site, record(site)).remove)
            yield seen
    except _Stop as reached:
        if reached is not halt:
            raise
    for site, (tensor, version) in versions.items():
        if not stop and tensor._version != version:
            raise HookError(
                f"The model changed the activations of {site!r} in place after they were caught. Run it under "
                "torch.no_grad() to get a copy, or choose the site after the in-place step."
            )


def run_to(model: Any, sites: str | Sequence[str], forward: Callable[[], Any]) -> dict[str, Tensor]:
    """Call `forward()` and stop it after the last of the sites has been seen.

    Returns:
        Site → rows, in the order asked for.

    Raises:
        HookError: Unknown site, or `forward` ended without a site having run.
        ShapeError: A site gives something that cannot be read as rows.
    """
    names = _site_list(sites)
    with capture(model, names, stop=True) as seen:
        forward()
    missing = [site for site in names if site not in seen]
    if missing:
        raise HookError(
            f"{display_name(model)} finished its forward pass without running {', '.join(map(repr, missing))}. "
            "The module exists but this input does not pass through it; choose a site from hook_names()."
        )
    return {site: seen[site] for site in names}


@contextmanager
def intervene(model: Any, edits: Edits) -> Iterator[None]:
    """Replace what the model gives at the edited sites while the block runs.

    Takes an `Edit`, a dictionary (`Dictionary`, or anything else with `splice()`), whose reconstruction then stands in
    for the activations at its site, several of these, or a mapping site → function or dictionary.

    The function of an edit gets a copy of the rows, `(batch, token, width)` or `(batch, width)`, in model units, and
    gives rows of the same shape, dtype and device. Several edits of one site apply in the order given. An edit at
    `image_embed` / `text_embed` acts on the embedding before it is normalised. Hooks are removed however the block
    ends.

    Raises:
        ConfigError: What is none of these.
        HookError: Unknown site.
        ShapeError: A site gives no rows, or an edit changed shape, dtype or device.
    """
    listed = _edit_list(edits)
    batches, under_way = set[int](), [True]
    try:
        with ExitStack() as installed:
            _require_rows(model, [edit.site for edit in listed])
            installed.enter_context(_watch_batch(root_module(model), batches))
            for edit in listed:
                installed.callback(_install(model, edit.site, _replacement(model, edit, batches, under_way)).remove)
            yield
    finally:
        under_way.clear()  # a hook that an interrupt left while others were put in or taken out edits nothing


def probe(model: Any, forward: Callable[[Tensor], Any], batch: Tensor) -> dict[str, Probed]:
    """What every module gives, by one forward pass, in the order in which modules finish.

    Args:
        model: The module or `HookedModel` that `forward` runs.
        forward: Takes `batch`.
        batch: `(batch, …)`; the batch size must differ from the number of tokens, or rows and tokens look alike.
    """
    root = root_module(model)
    names: dict[nn.Module, list[str]] = {}
    for name, module in [*hook_points(root).items(), *root.named_modules()]:
        if name and "_original_component" not in name and name not in names.get(module, []):
            names.setdefault(module, []).append(name)
    seen: dict[str, Probed] = {}
    calls: dict[str, int] = {}

    def note(aliases: Sequence[str]) -> Callable[[Any], None]:
        def on_output(output: Any) -> None:
            tensor = tensor_of(output)
            four_axes = tensor is not None and tensor.ndim == 4
            for name in aliases:
                calls[name] = calls.get(name, 0) + 1
                seen[name] = describe(output, maps=four_axes and holds_maps(root, name), batches={batch.shape[0]})

        return on_output

    with ExitStack() as installed, torch.no_grad():
        for module, aliases in names.items():
            installed.callback(module.register_forward_hook(_as_hook(note(aliases))).remove)
        for site in _pseudo_sites(model):
            installed.callback(_install(model, site, note([site])).remove)
        forward(batch)
    for name, count in calls.items():
        if count > 1 and not seen[name].problem:
            problem = f"runs {count} times in one forward pass, and a row must come from one call"
            seen[name] = Probed(seen[name].shape, problem=problem)
    return seen


def _readable(output: Any, *, model: Any, site: str, batches: set[int]) -> Tensor:
    """The tensor in a module's output, checked. Raises `ShapeError`."""
    tensor = tensor_of(output)
    if tensor is None:
        raise ShapeError(f"Site {site!r} gives a {type(output).__name__}, not a tensor; {EXPECTED}.")
    maps = tensor.ndim == 4 and holds_maps(root_module(model), site)
    problem = shape_problem(tensor, maps=maps, batches=batches)
    if problem:
        raise ShapeError(f"Site {site!r} {problem}. Choose another site from hook_names().")
    return tensor


def _replacement(model: Any, edit: Edit, batches: set[int], under_way: list[bool]) -> Callable[[Any], Any]:
    title = edit.label or f"The edit at {edit.site!r}"

    def on_output(output: Any) -> Any:
        if not under_way:
            return None
        tensor = _readable(output, model=model, site=edit.site, batches=batches)
        rows = to_rows(tensor)
        given = edit.apply(rows.clone())
        if not isinstance(given, Tensor):
            raise ShapeError(f"{title} gave a {type(given).__name__}; expected the changed rows. Return a tensor.")
        for kind in ("shape", "dtype", "device"):
            now, before = _plain(getattr(given, kind)), _plain(getattr(rows, kind))
            if now != before:
                raise ShapeError(f"{title} gave {kind} {now}; expected {before}. Return rows like those it gets.")
        return put_back(output, from_rows(given, tensor))

    return on_output


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def _site_list(sites: str | Sequence[str]) -> list[str]:
    names = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites or ()))
    if not names:
        raise ConfigError("No site was given; expected at least one. Choose from model.hook_names().")
    return names


def _edit_list(edits: Edits) -> list[Edit]:
    if isinstance(edits, Mapping):
        return [_edit_at(site, given) for site, given in edits.items()]
    return [_edit(one) for one in (edits if isinstance(edits, Iterable) else [edits])]


def _edit_at(site: str, given: Any) -> Edit:
    """What stands beside a site in a mapping."""
    if hasattr(given, "splice") or not callable(given):
        return _edit(given, site)
    apply: Callable[[Tensor], Tensor] = given  # pyright: ignore[reportAssignmentType]
    return Edit(site, apply)


def _edit(given: Any, site: str | None = None) -> Edit:
    if isinstance(given, Edit):
        return given if site is None else replace(given, site=site)
    splice = getattr(given, "splice", None)
    edit = splice(site=site) if callable(splice) and not isinstance(given, type) else None
    if not isinstance(edit, Edit):
        raise ConfigError(
            f"Got a {type(given).__name__} among the edits; expected nb_sae.Edit(site, function) or a Dictionary. "
            "A mapping {site: function} is taken too."
        )
    return edit


def _require_rows(model: Any, sites: Sequence[str]) -> None:
    """Let a wrapper that has probed its module refuse a site before anything runs."""
    check = getattr(model, "require_rows", None)
    if callable(check) and not isinstance(model, nn.Module):
        for site in sites:
            check(site)


def _pseudo_sites(model: Any) -> Mapping[str, str]:
    """Embedding name → method of the module that returns it, unnormalised when asked with `normalize=False`."""
    declared = getattr(model, "pseudo_sites", None)
    if isinstance(declared, Mapping):
        return declared
    root = root_module(model)
    return {site: method for site, method in _EMBED_METHODS.items() if callable(getattr(root, method, None))}


def _install(model: Any, site: str, on_output: Callable[[Any], Any]) -> Handle:
    method = _pseudo_sites(model).get(site)
    if method is not None:
        return hook_method(root_module(model), method, on_output)
    return find_module(model, site).register_forward_hook(_as_hook(on_output))


def _as_hook(on_output: Callable[[Any], Any]) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, args, output: on_output(output)


@contextmanager
def _watch_batch(root: nn.Module, batches: set[int]) -> Iterator[None]:
    """Keep the batch sizes of what the module is being called with, so that rows and tokens are not mixed up."""

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1]
        batches.update(value.shape[0] for value in given)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        batches.clear()

    with ExitStack() as installed:
        installed.callback(root.register_forward_pre_hook(before, with_kwargs=True).remove)
        installed.callback(root.register_forward_hook(after, always_call=True).remove)
        yield
