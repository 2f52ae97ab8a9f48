"""A stream against the store of the same inputs: the same rows once a pass, resumed to the bit; pairs of sites."""

from __future__ import annotations

import pytest
import store_fakes as fakes
import torch
from sessions import same, state

import nb_sae as ns
from nb_sae.errors import ConfigError, NonFiniteError, NotEnoughMemoryError, StoreError

PLAN = ns.TrainConfig(rows=40 * 16, batch_rows=16, dead_after_rows=200)
CONFIG = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4))


def images(count=60) -> fakes.FakeInputs:
    return fakes.FakeInputs(fakes.colours(count))


def stream(inputs=None, *, model=None, rows=80, **others) -> ns.ActivationStream:
    others = {"site": "tokens", "batch_inputs": 4, "dtype": "float32", "progress": False, **others}
    return ns.ActivationStream(model or fakes.FakeModel(), inputs or images(), rows=rows, **others)


def counted(batches) -> dict[tuple[float, ...], int]:
    seen: dict[tuple[float, ...], int] = {}
    for batch in batches:
        for row in batch.tolist():
            seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    return seen


@pytest.mark.parametrize("rows", [32, 48, 80, 299, 10_000])
@pytest.mark.parametrize("batch_rows", [10, 15])
def test_a_pass_gives_the_rows_of_the_store_once(tmp_path, rows, batch_rows):
    inputs = images()
    store = ns.ActivationStore.collect(
        fakes.FakeModel(), inputs, site="tokens", path=tmp_path / "s", dtype="float32", **fakes.SMALL
    )
    expected = counted([store[:]])
    given = counted(stream(inputs, rows=rows).batches(batch_rows, seed=3))
    assert len(store) == 300, "a multiple of both batches, so that none is left out"
    assert given == expected


def test_passes_and_seeds_have_their_own_order_and_repeat_it():
    one = stream()
    first = list(one.batches(16, seed=0))
    assert all(batch.shape == (16, 8) for batch in first)
    assert torch.equal(torch.stack(first), torch.stack(list(stream().batches(16, seed=0))))
    for seed, epoch in ((1, 0), (0, 1)):
        assert not torch.equal(torch.stack(first), torch.stack(list(one.batches(16, seed=seed, epoch=epoch))))


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 7, 12, 17])
def test_skipping_gives_what_would_have_come(skip):
    whole = list(stream().batches(16, seed=0))
    fresh = list(stream().batches(16, seed=0, skip=skip))
    assert torch.equal(torch.stack(fresh), torch.stack(whole[skip:]))


def test_rows_of_one_input_are_spread_as_in_a_shuffle_of_the_buffer():
    source = stream(images(800), rows=1_000)  # 4,000 rows: 50 batches of 20 in the buffer
    together = pairs = 0
    for batch in source.batches(20, seed=0):
        pairs += 1
        together += 20 - len({round(float(one), 3) for one in batch[:, 0]})
    assert pairs == 200
    assert together < 200 * 20 * 0.2


def test_resuming_runs_the_model_over_at_most_two_buffers_and_gives_the_same_bits(tmp_path):
    inputs, model = images(400), fakes.FakeModel()  # 2,000 rows a pass, 125 batches; the buffer holds 5
    plan = ns.TrainConfig(rows=120 * 16, batch_rows=16, dead_after_rows=200)
    whole = ns.Session(stream(inputs), CONFIG, plan, device="cpu", progress=False).run(progress=False)
    for steps in (3, 63, 88):
        half = ns.Session(stream(inputs), CONFIG, plan, device="cpu", progress=False)
        half.run(steps=steps, progress=False)
        half.save(tmp_path / str(steps))
        again = stream(inputs, model=model)
        loaded = ns.Session.load(tmp_path / str(steps), again, device="cpu")
        model.calls.clear()
        loaded.run(steps=1, progress=False)
        assert sum(count for count, _ in model.calls) * 5 <= 2 * 80 + 2 * 4 * 5 + 16
        assert same(state(loaded.run(progress=False)), state(whole))


def test_several_passes_train_as_well_as_the_store(tmp_path):
    torch.manual_seed(0)
    inputs, model = images(200), fakes.FakeModel()
    model.alter = lambda batch, out: torch.cat([out[..., :4] ** 2, out[..., 4:].sin()], -1)
    store = ns.ActivationStore.collect(
        model, inputs, site="tokens", path=tmp_path / "s", dtype="float32", **fakes.SMALL
    )
    plan = ns.TrainConfig(rows=16_000, batch_rows=64)
    train = {"config": CONFIG, "train": plan, "device": "cpu", "progress": False}
    direct = ns.train_sae(store, **train)
    source = stream(inputs, model=model, rows=512)
    streamed = ns.train_sae(source, **train)
    errors = [
        float((store[:] - one.reconstruct(store[:])).square().sum() / (store[:] - store[:].mean(0)).square().sum())
        for one in (direct, streamed)
    ]
    assert errors[0] < 0.5
    assert errors[1] == pytest.approx(errors[0], rel=0.15, abs=0.01)
    assert streamed.site == "tokens"
    assert source.statistics().mean == pytest.approx(store.statistics().mean, rel=0.3, abs=0.1)


def test_inputs_that_cannot_be_read_are_left_out_and_recorded():
    items = fakes.colours(60)
    items[7] = items[30] = None  # type: ignore[call-overload]
    source = stream(fakes.FakeInputs(items))
    given = counted(source.batches(10, seed=0))
    assert sum(given.values()) == 290
    assert source.inputs.filter(source.inputs["status"] == "skipped")["input_id"].to_list() == [7, 30]


def test_texts_of_unequal_length_are_streamed():
    inputs = fakes.FakeInputs(["abc", "defghij", "k", "lmnopqrstuv"] * 25, "text")
    source = stream(inputs, batch_inputs=5)
    total = sum(len(batch) for batch in source.batches(10, seed=0))
    assert total == 22 * 25 - 22 * 25 % 10
    assert len(source) == pytest.approx(22 * 25, rel=0.1)


def test_rows_that_are_not_finite_or_overflow_name_their_inputs():
    for value, dtype, message in (
        (float("nan"), "float32", r"inputs \d+ to \d+ at 'tokens' hold NaN"),
        (1e6, "float16", r"float16 ends at 65504.*dtype='bfloat16'"),
    ):
        model = fakes.FakeModel()
        model.alter = lambda batch, out, value=value: out + value
        with pytest.raises(NonFiniteError, match=message):
            list(stream(model=model, dtype=dtype).batches(10, seed=0))


def test_what_a_stream_cannot_do_says_so(monkeypatch, capsys):
    source = stream()
    for ask in (lambda: source[0], lambda: source.rows, lambda: source.chunks(5)):
        with pytest.raises(StoreError, match="Collect a store"):
            ask()
    with pytest.raises(ConfigError, match="fewer than two batches"):
        stream(rows=20).batches(16, seed=0)
    with pytest.raises(ConfigError, match="Give one of them"):
        stream(rows=20, bytes=20)
    list(stream(progress=True).batches(16, seed=0))
    assert "Buffer of tokens: 80 rows × 8 × 4 bytes = 2.6 kB on cpu" in capsys.readouterr().out
    monkeypatch.setattr("nb_sae.store.stream.free_bytes", lambda device: 100)
    with pytest.raises(NotEnoughMemoryError, match="smaller rows="):
        stream().batches(16, seed=0)


def test_the_demo_models_stream():
    lm = ns.load_lm("demo", device="cpu")
    faces, clip = ns.demo_faces(24, seed=0), ns.load_clip("demo", device="cpu")
    block = "visual.transformer.resblocks.1"
    for model, inputs, site in ((lm, ns.demo_texts()[:40], "gpt_neox.layers.2"), (clip, faces, block)):
        source = ns.ActivationStream(model, inputs, site=site, rows=1_024, batch_inputs=8, progress=False)
        config, plan = ns.SAEConfig.msae(d_sae=256), ns.TrainConfig(rows=20 * 64, batch_rows=64)
        session = ns.Session(source, config, plan, device="cpu", progress=False)
        session.run(progress=False)
        assert session.log["loss"][-1] < session.log["loss"][0]


# --- pairs ---


def test_a_planted_transcoder_is_found():
    generator = torch.Generator().manual_seed(0)
    reads = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=-1)
    writes = torch.nn.functional.normalize(torch.randn(24, 12, generator=generator), dim=-1)
    chosen = torch.rand(6_000, 24, generator=generator).topk(2, dim=-1).indices
    strength = torch.zeros(6_000, 24).scatter(-1, chosen, 0.5 + torch.rand(6_000, 2, generator=generator))
    x, y = strength @ reads, strength @ writes
    source = ns.pair(ns.ActivationStore.from_tensor(x, site="in"), ns.ActivationStore.from_tensor(y, site="out"))
    plan = ns.TrainConfig(rows=200_000, batch_rows=256)
    transcoder = ns.train_sae(source, ns.SAEConfig.topk(2, d_sae=48), plan, device="cpu", progress=False)
    assert (transcoder.site, transcoder.target, transcoder.d_in, transcoder.d_out) == ("in", "out", 16, 12)
    off = (y - transcoder.reconstruct(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert off < 0.1
    found = (writes @ transcoder.W_dec.T).max(-1).values.mean()
    null = (writes @ torch.nn.functional.normalize(torch.randn(48, 12, generator=generator), dim=-1).T).max(-1).values
    assert found > 0.95 > null.mean()


def test_pairs_stay_pairs_whatever_their_width():
    x = torch.arange(500.0)[:, None].expand(500, 3).contiguous()
    wide = torch.arange(500.0)[:, None].expand(500, 40).contiguous()
    source = ns.pair(ns.ActivationStore.from_tensor(x), ns.ActivationStore.from_tensor(wide))
    seen = []
    for one, other in source.batches(50, seed=1, epoch=2, skip=3):
        assert torch.equal(one[:, 0], other[:, 0])
        seen += one[:, 0].tolist()
    assert len(set(seen)) == 350


def test_a_transcoder_resumes_bit_for_bit(tmp_path):
    x, y = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), torch.randn(300, 5)
    source = ns.pair(ns.ActivationStore.from_tensor(x, site="in"), ns.ActivationStore.from_tensor(y, site="out"))
    make = {"config": ns.SAEConfig.topk(4, d_sae=32), "train": PLAN, "device": "cpu", "progress": False}
    whole = ns.Session(source, **make).run(progress=False)
    ns.Session(source, **make).run(steps=25, progress=False).save(tmp_path / "s")
    again = ns.Session.load(tmp_path / "s", source, device="cpu").run(progress=False)
    assert same(state(again), state(whole))
    with pytest.raises(StoreError, match="d_out was 5"):
        ns.Session.load(tmp_path / "s", source.x, device="cpu")


def test_rows_that_do_not_belong_together_are_refused(tmp_path):
    store = ns.ActivationStore.from_tensor
    x = torch.randn(10, 3)
    with pytest.raises(StoreError, match="has 10 rows, 'rows' has 9"):
        ns.pair(store(x), store(x[:9]))
    with pytest.raises(StoreError, match="two sites of one model"):
        ns.pair(store(x), store(x, model="other"))
    with pytest.raises(StoreError, match="keys differ"):
        ns.pair(store(x), store(x, keys=[f"b{i}" for i in range(10)]))
    stores = ns.ActivationStore.collect(
        fakes.FakeModel(), images(12), site=["tokens", "pooled"], path=tmp_path / "two", **fakes.SMALL
    )
    with pytest.raises(StoreError, match=r"'tokens' has 60 rows, 'pooled' has 12"):
        ns.pair(stores["tokens"], stores["pooled"])
    one, other = stores["tokens"].split(test=0.5, seed=0)
    with pytest.raises(StoreError, match=r"Row 0 is token 0 of input \d+"):
        ns.pair(one, other)
    train, test = ns.pair(stores["tokens"], stores["tokens"]).split(test=0.25)
    assert (len(train), len(test)) == (45, 15)
