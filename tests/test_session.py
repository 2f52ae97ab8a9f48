"""Run, interrupt, look, change, fork, several sessions on one stream, failures, devices, memory."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import planted
import pytest
import torch

import nb_sae as ns
from nb_sae import machine
from nb_sae.errors import ConfigError, NonFiniteError, NotEnoughMemoryError, StoreError
from nb_sae.sae import optim
from nb_sae.sae import session as session_module
from nb_sae.sae.memory import MemoryBudget
from nb_sae.sae.step import TrainingState

ROWS, WIDTH = 400, 8
TRAIN = ns.TrainConfig(rows=640, batch_rows=32, dead_after_rows=200)
CONFIG = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4))
CONFIGS = {
    "top_k": CONFIG,
    "batch_top_k": ns.SAEConfig.batch_topk((2, 4), d_sae=32),
    "relu": ns.SAEConfig.relu(d_sae=32),
    "jump_relu": ns.SAEConfig.jump_relu(4, d_sae=32),
    "gated": ns.SAEConfig.gated(d_sae=32),
    "k_sparse": ns.SAEConfig.k_sparse(3, d_sae=32),
    "widths": ns.SAEConfig.msae(d_sae=32, budgets=(2, 4), widths=(8, 32)),
}


def rows(count: int = ROWS, seed: int = 1) -> torch.Tensor:
    return planted.sparse_rows(planted.atoms(32, WIDTH), count, active=2, seed=seed)[0]


@pytest.fixture
def source() -> ns.ActivationStore:
    return ns.ActivationStore.from_tensor(rows())


class Rows(ns.ActivationStore):
    """Rows in memory whose batches a test can spoil."""

    def batches(self, batch_rows, *, seed, epoch=0, skip=0, device="cpu"):
        self.read = getattr(self, "read", 0)
        given = super().batches(batch_rows, seed=seed, epoch=epoch, skip=skip, device=device)
        for number, batch in enumerate(given, start=skip):
            self.read += 1
            yield self.spoil(epoch, number, batch)

    def spoil(self, epoch, number, batch):
        return batch


def start(source, config=CONFIG, train=TRAIN, **others) -> ns.Session:
    return ns.Session(source, config, train, device="cpu", progress=False, **others)


def state(session: ns.Session) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in session._state.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- run, interrupt, look ---


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_run_in_pieces_equals_run_in_one(source, config):
    whole = start(source, config).run(progress=False)
    pieces = start(source, config)
    for steps in (3, 7, 1000):
        pieces.run(steps=steps, progress=False)
    assert pieces.step == whole.step == 20
    assert same(state(pieces), state(whole))
    assert pieces.log["loss"].to_list() == whole.log["loss"].to_list()


def test_an_interrupt_stops_after_the_step_and_loses_nothing(source):
    session = start(source)
    session.on_log = lambda record: os.kill(os.getpid(), signal.SIGINT) if record["step"] == 5 else None
    session.run(progress=False)
    assert session.stopped_early
    assert session.step == 5
    session.run(progress=False)
    assert session.finished
    assert not session.stopped_early
    assert same(state(session), state(start(source).run(progress=False)))


def test_finished_session_says_how_to_go_on_and_extends(source):
    session = start(source).run(progress=False)
    with pytest.raises(ConfigError, match="extend"):
        session.run(progress=False)
    session.extend(320).run(progress=False)
    assert session.step == 30


def test_equal_rows_are_refused():
    with pytest.raises(StoreError, match="All rows are equal"):
        start(ns.ActivationStore.from_tensor(torch.ones(10, 4)))


# --- log ---


def test_on_log_comes_at_the_stated_rate_and_at_the_end(source):
    seen = []
    train = ns.TrainConfig(rows=640, batch_rows=32, log_every=6)
    start(source, train=train, on_log=seen.append).run(progress=False)
    assert [record["step"] for record in seen] == [6, 12, 18, 20]
    assert all(0 < record["fvu_k4"] <= record["fvu_k2"] * 1.01 for record in seen)
    lines = start(source, train=ns.TrainConfig(rows=640, batch_rows=32, log_points=4)).run(progress=False).log
    assert lines["step"].to_list() == [5, 10, 15, 20]


def test_an_on_log_that_raises_comes_out_and_loses_nothing(source):
    session = start(source)

    def broken(record):
        if record["step"] == 4:
            raise RuntimeError("monitor broke")

    session.on_log = broken
    with pytest.raises(RuntimeError, match="monitor broke"):
        session.run(progress=False)
    assert session.step == 4
    assert session.log.height == 4, "the line that on_log was given is kept"
    session.on_log = None
    whole = start(source).run(progress=False)
    assert same(state(session.run(progress=False)), state(whole))
    assert session.log["loss"].to_list() == whole.log["loss"].to_list()


def test_numbers_on_a_gpu_are_read_when_the_next_line_is_due(source, monkeypatch):
    from nb_sae.sae.logbook import Logbook

    session, seen = start(source), []
    session.on_log = seen.append
    waiting = []

    class Slow(machine.Readback):
        def wait(self):
            waiting.append(session.step)
            return super().wait()

    monkeypatch.setattr("nb_sae.sae.logbook.Readback", Slow)
    monkeypatch.setattr(Logbook, "waits", staticmethod(lambda numbers: False))
    session.run(steps=3, progress=False)
    assert waiting == [2, 3, 3], "line 1 is read at step 2, line 2 at step 3, line 3 at the end"
    assert [record["step"] for record in seen] == [1, 2, 3]


# --- nothing waits for the device ---


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_on_a_gpu_never_waits_for_it(name, monkeypatch):
    """Tensors of the device "meta" have no values, so whatever would wait for one raises; it takes the GPU's path."""
    monkeypatch.setattr(optim, "has_fused_adam", lambda device: True)
    monkeypatch.setattr(optim, "compute_dtype", lambda *args: torch.bfloat16)
    device = torch.device("meta")
    plan = ns.TrainConfig(rows=640, batch_rows=32, grad_clip=1.0, ema_decay=0.9, project_gradient=True)
    state = TrainingState(CONFIGS[name], plan, WIDTH, device=device)
    assert state.optimizer.defaults["fused"]
    # No kernel of these two is made for "meta"; Adam's reads the mark of a failed step on the device.
    monkeypatch.setattr(state.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch, "autocast", lambda *args, **others: nullcontext())
    x = torch.empty(32, WIDTH, device=device)
    for step in range(2):
        result = state.backward(x, x, step)
        state.apply(step)
    numbers = torch.cat([torch.stack([result.loss, result.variance]), result.errors, state.dead.float()])
    assert numbers.device == device
    with pytest.raises(RuntimeError, match="meta"):
        bool(state.failed_step >= 0)  # what the test forbids does raise


# --- change ---


def test_a_changed_setting_holds_from_the_next_step_on(source):
    session = start(source).run(steps=5, progress=False)
    before = state(session)
    session.change(learning_rate=1e-12, level_weights=[3, 1], dead_after_rows=10, log_every=2)
    assert same(before, state(session)), "changing moves nothing"
    session.run(steps=2, progress=False)
    after = state(session)
    assert (after["W_enc"] - before["W_enc"]).abs().max() < 1e-6
    assert not torch.equal(after["adam.W_enc.exp_avg"], before["adam.W_enc.exp_avg"])
    assert session._state._weights == (0.75, 0.25)
    assert session.dictionary.provenance["changes"] == [
        {"step": 5, "learning_rate": 1e-12, "level_weights": [3, 1], "dead_after_rows": 10, "log_every": 2}
    ]


def test_a_change_to_what_it_is_already_changes_no_bit(source):
    session = start(source).run(steps=5, progress=False)
    session.change(learning_rate=session.train.learning_rate, budgets=(2, 4)).run(progress=False)
    assert same(state(session), state(start(source).run(progress=False)))


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["batch_top_k"]], ids=["top_k", "batch_top_k"])
def test_budgets_may_change_and_take_over_what_the_next_larger_one_knew(source, config):
    session = start(source, config).run(steps=5, progress=False)
    silent = session._state.silent_rows.clone()
    session.change(budgets=(1, 3, 8))
    assert torch.equal(session._state.silent_rows, silent[[0, 1, 1]])
    session.run(progress=False)
    assert session.dictionary.budgets == (1, 3, 8)
    assert {"fvu_k2", "fvu_k1", "fvu_k8"} <= set(session.log.columns)
    assert session.show()["fvu"].is_finite().all()
    assert "k=8" in repr(session)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"d_sae": 64}, "d_sae cannot change.*shape"),
        ({"sparsity": "relu"}, "sparsity cannot change"),
        ({"seed": 1}, "order of the rows"),
        ({"batch_rows": 64}, "count batches"),
        ({"learningrate": 1e-3}, "no setting.*learning_rate"),
        ({"learning_rate": -1}, "above 0"),
        ({"budgets": (4, 2)}, "ascending"),
        ({"budgets": (4, 200)}, "larger than d_sae"),
        ({"widths": (8, 16)}, "must end at d_sae=32"),
        ({"level_weights": (1, 2, 3)}, "one weight for each"),
        ({"rows": 10}, "rows were seen already"),
    ],
)
def test_changes_outside_the_method_are_refused_and_nothing_changes(source, settings, message):
    session = start(source).run(steps=5, progress=False)
    before = session.config, session.train
    with pytest.raises(ConfigError, match=message):
        session.change(learning_rate=1.0, **settings) if "learning_rate" not in settings else session.change(**settings)
    assert (session.config, session.train) == before
    assert same(state(session.run(progress=False)), state(start(source).run(progress=False)))


def test_learned_level_scales_follow_the_budgets_and_cannot_come_or_go(source):
    config = ns.SAEConfig(d_sae=32, budgets=(2, 4), scale_levels=True)
    session = start(source, config).run(steps=5, progress=False)
    scales = session.sae.log_level_scale.detach().clone()
    session.change(budgets=(1, 3, 8))
    assert torch.equal(session.sae.log_level_scale.detach(), scales[[0, 1, 1]])
    assert session.run(progress=False).finished
    with pytest.raises(ConfigError, match="3 and 1 levels"):
        session.change(budgets=(4,))


# --- fork, together ---


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fork_goes_its_own_way_and_leaves_the_first_alone(source, name):
    train = ns.TrainConfig(rows=640, batch_rows=32, ema_decay=0.9, resample_every=200, dead_after_rows=64)
    session = start(source, CONFIGS[name], train).run(steps=7, progress=False)
    twin = session.fork(progress=False)
    other = session.fork(progress=False, learning_rate=1e-1)
    other.run(progress=False)
    twin.run(progress=False)
    session.run(progress=False)
    whole = start(source, CONFIGS[name], train).run(progress=False)
    assert same(state(session), state(whole))
    assert same(state(twin), state(whole))
    assert not torch.equal(state(other)["W_dec"], state(whole)["W_dec"])
    assert twin.source is session.source
    assert twin.log["loss"].to_list() == whole.log["loss"].to_list()


def test_sessions_together_equal_each_alone_and_read_every_batch_once():
    shared = Rows.from_tensor(rows())
    configs = [CONFIG, CONFIGS["relu"], CONFIGS["batch_top_k"]]
    plans = [TRAIN, ns.TrainConfig(rows=320, batch_rows=32), TRAIN]
    sessions = [start(shared, config, train) for config, train in zip(configs, plans, strict=True)]
    shared.read = 0
    ns.train_together(sessions, steps=4, progress=False)
    assert [one.step for one in sessions] == [4, 4, 4]
    ns.train_together(sessions, progress=False)
    assert [one.step for one in sessions] == [20, 10, 20]
    assert shared.read == 20
    for session, config, train in zip(sessions, configs, plans, strict=True):
        alone = start(ns.ActivationStore.from_tensor(rows()), config, train).run(progress=False)
        assert same(state(session), state(alone))


def test_sessions_that_cannot_share_batches_are_refused(source):
    one = start(source)
    cases = {
        "source": start(ns.ActivationStore.from_tensor(rows())),
        "batch_rows": start(source, train=ns.TrainConfig(rows=640, batch_rows=64)),
        "seed": start(source, train=ns.TrainConfig(rows=640, batch_rows=32, seed=1)),
        "step": start(source).run(steps=1, progress=False),
    }
    for what, other in cases.items():
        with pytest.raises(ConfigError, match=f"their {what} differs"):
            ns.train_together([one, other], progress=False)
    with pytest.raises(ConfigError, match="each once"):
        ns.train_together([one, one], progress=False)


def test_a_session_that_fails_leaves_the_others_of_its_company_whole(source):
    def broken(record):
        if record["step"] == 3:
            raise RuntimeError("monitor broke")

    sessions = [start(source, on_log=broken), start(source, CONFIGS["relu"])]
    with pytest.raises(RuntimeError, match="monitor broke") as caught:
        ns.train_together(sessions, progress=False)
    assert "session 0 of 2" in caught.value.__notes__[0]
    assert [one.step for one in sessions] == [3, 3]
    sessions[0].on_log = None
    ns.train_together(sessions, progress=False)
    assert same(state(sessions[0]), state(start(source).run(progress=False)))


# --- a loss that is not finite ---


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stops_with_the_last_good_state_kept(name, value):
    shared = Rows.from_tensor(rows())
    train = ns.TrainConfig(rows=640, batch_rows=32, ema_decay=0.9, log_every=5, resample_every=96, dead_after_rows=64)

    def spoil(epoch, number, batch):
        batch = batch.clone()
        if (epoch, number) == (0, 6):
            batch[3, 2] = value
        return batch

    shared.spoil = spoil
    session = start(shared, CONFIGS[name], train)
    with pytest.raises(NonFiniteError, match=r"step 6 \(rows 192 to 224 of the run\)"):
        session.run(progress=False)
    good = start(ns.ActivationStore.from_tensor(rows()), CONFIGS[name], train).run(steps=6, progress=False)
    assert session.step == 6
    assert same(state(session), state(good))
    assert session.log["step"].to_list() == [5]
    with pytest.raises(NonFiniteError, match="step 6"):
        session.run(progress=False)
    assert same(state(session), state(good))
    del shared.spoil  # the rows are mended: it goes on as if nothing had been
    session.run(progress=False)
    whole = start(ns.ActivationStore.from_tensor(rows()), CONFIGS[name], train).run(progress=False)
    assert same(state(session), state(whole))


def test_a_batch_can_be_left_out():
    shared = Rows.from_tensor(rows())
    shared.spoil = lambda epoch, number, batch: batch * float("nan") if (epoch, number) == (0, 6) else batch
    session = start(shared)
    with pytest.raises(NonFiniteError, match=r"skip\(\)"):
        session.run(progress=False)
    session.skip().run(progress=False)
    assert session.finished
    assert all(value.isfinite().all() for value in state(session).values())


def test_an_absurd_learning_rate_is_named_and_a_fork_goes_on_with_a_lower_one(source):
    session = start(source).run(steps=2, progress=False)
    good = session.fork(progress=False)
    session.change(learning_rate=1e25)
    with pytest.raises(NonFiniteError, match=r"learning rate \(now .*e\+2\d\)") as caught:
        session.run(progress=False)
    assert f"at step {session.step}" in str(caught.value)
    assert all(value.isfinite().all() for value in state(session).values())
    good.change(learning_rate=1e-3).run(progress=False)
    assert good.finished
    assert good.log["loss"].is_finite().all()


def test_without_the_fused_kernel_a_failed_step_changes_nothing_either(source, monkeypatch):
    monkeypatch.setattr(optim, "has_fused_adam", lambda device: False)
    shared = Rows.from_tensor(rows())
    shared.spoil = lambda epoch, number, batch: batch * float("nan") if number == 3 else batch
    session = start(shared)
    with pytest.raises(NonFiniteError, match="step 3"):
        session.run(progress=False)
    assert same(state(session), state(start(source).run(steps=3, progress=False)))


# --- memory ---


def test_the_memory_budget_is_printed_before_it_is_allocated(source, capsys, monkeypatch):
    monkeypatch.setattr("nb_sae.sae.running.TrainingState", lambda *args, **others: pytest.fail("allocated"))
    monkeypatch.setattr("nb_sae.sae.memory.free_bytes", lambda device: 10_000)
    with pytest.raises(NotEnoughMemoryError, match=r"are free\. Lower SAEConfig\.d_sae"):
        ns.Session(source, CONFIG, TRAIN, device="cpu")
    line = capsys.readouterr().out
    assert line.startswith("Training 32 latents of width 8 on cpu: ")
    assert line.count("\n") == 1


def test_the_weights_of_the_budget_are_the_bytes_that_are_there(source):
    for config in CONFIGS.values():
        session = start(source, config).run(steps=1, progress=False)
        assert session.memory.weights == pytest.approx(sum(one.nbytes for one in session.sae.parameters()), rel=0.01)
        moments = sum(value.nbytes for name, value in state(session).items() if ".exp_avg" in name)
        assert session.memory.moments == pytest.approx(moments, rel=0.01)


def test_a_batch_that_does_not_fit_is_answered_with_one_that_does():
    config = ns.SAEConfig.topk(4, d_sae=64).resolve(16)
    budget = MemoryBudget.of(config, ns.TrainConfig(batch_rows=65_536).resolve(10**6), 16, None, torch.device("cpu"))
    free = budget.state + 1_000 * budget.per_row
    assert "TrainConfig.batch_rows to 512" in budget.advice(free)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: 1")])
def test_running_out_of_memory_says_what_was_needed_and_loses_nothing(source, monkeypatch, error):
    session = start(source).run(steps=3, progress=False)

    def exhausted(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(session._state, "backward", exhausted)
        with pytest.raises(NotEnoughMemoryError, match=r"= about .*did not fit.*Lower"):
            session.run(progress=False)
    assert same(state(session.run(progress=False)), state(start(source).run(progress=False)))


def test_other_errors_of_torch_come_out_as_they_are(source, monkeypatch):
    session = start(source)

    def broken(*args):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(session._state, "backward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        session.run(progress=False)


# --- devices ---


def test_the_device_is_chosen_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.choose_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.choose_device() == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device='cuda'.*give 'cpu'"):
        machine.choose_device("cuda")


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so_if_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    t4 = torch.device("cuda")
    assert optim.compute_dtype(ns.TrainConfig(), t4, 2**24) is torch.float32
    with pytest.raises(ConfigError, match="does not compute in bfloat16"):
        optim.compute_dtype(ns.TrainConfig(autocast="bfloat16"), t4, 2**24)


def test_mps_refuses_float64_and_adam_falls_back_where_no_fused_kernel_is(monkeypatch, source):
    with pytest.raises(ConfigError, match="no float64"):
        optim.check_device(ns.TrainConfig(dtype="float64"), torch.device("mps"))
    real = torch.optim.Adam

    def refusing(params, *, fused=False, **others):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")
        return real(params, fused=False, **others)

    monkeypatch.setattr(torch.optim, "Adam", refusing)
    session = start(source).run(progress=False)
    assert not session._state.optimizer.defaults["fused"]
    monkeypatch.setattr(torch.optim, "Adam", real)
    torch.testing.assert_close(
        session.dictionary.W_dec, start(source).run(progress=False).dictionary.W_dec, rtol=1e-3, atol=1e-4
    )


def test_the_session_module_offers_train_sae(source):
    dictionary = session_module.train_sae(source, CONFIG, TRAIN, device="cpu", progress=False)
    assert dictionary.d_sae == 32
