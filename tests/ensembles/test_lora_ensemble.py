"""The training of the ensemble: exact, and the same for a member whatever is beside it."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

from gradfiltering.ensembles import lora_ensemble
from gradfiltering.ensembles.proxy_ensemble import ProxyEnsemble
from gradfiltering.ensembles.stack_state import StackState
from gradfiltering.errors import UserError
from gradfiltering.gradients.fused import FusedEngine
from gradfiltering.models.objectives import ResponseNLL
from gradfiltering.synthetic.pretraining import new_model
from tests.reference.gradients import loop_gradients
from tests.support.small_ensembles import (
    ROWS,
    SHAPE,
    assert_same_member,
    small_ensemble,
)


def test_member_is_the_same_in_an_ensemble_of_any_size(train):
    small, large = train("m1", small_ensemble(m=1)), train("m3")
    assert_same_member(small, large, 0)
    assert not np.allclose(large.epoch(2).grad_norm[0], large.epoch(2).grad_norm[1], rtol=1e-3), (
        "members 0 and 1 are copies of each other"
    )


def test_micro_batches_change_nothing(train):
    whole, cut = train("whole"), train("cut", tokens=64)
    for member in range(3):
        assert_same_member(whole, cut, member)


def test_same_seed_twice_is_identical_and_another_seed_is_not(train):
    first, again, other = train("first"), train("again"), train("other", seed=1)
    np.testing.assert_array_equal(first.epoch(2).grad_norm, again.epoch(2).grad_norm)
    assert not np.allclose(first.epoch(2).grad_norm, other.epoch(2).grad_norm, rtol=1e-3)


def test_later_epochs_do_not_change_earlier_ones(train):
    short, long = train("short", pair=(0, 1)), train("long", pair=(1, 3))
    for member in range(3):
        assert_same_member(short, long, member, epochs=(1,))
    assert short.epochs == [0, 1] and long.epochs == [1, 3]


def test_online_and_snapshot_agree_when_nothing_is_learned(train):
    still = small_ensemble(lr=1e-30, weight_decay=0.0)
    snapshot, online = train("snapshot", still), train("online", replace(still, collect="online"))
    for member in range(3):
        assert_same_member(snapshot, online, member)


def test_online_norms_come_from_the_training_steps(train):
    snapshot, online = train("snapshot"), train("online", small_ensemble(collect="online"))
    assert not np.allclose(snapshot.epoch(1).grad_norm, online.epoch(1).grad_norm, rtol=1e-3)


def test_files_of_the_contract(train, tmp_path, tokenizer):
    train("run")
    folder = tmp_path / "run"
    file = folder / "gradient_log" / "member=02" / "epoch=01" / "part-0.parquet"
    schema = pq.read_schema(file)
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "example_id": "int64",
        "grad_norm": "float",
        "loss": "float",
        "response_tokens": "int32",
    }
    whole = pq.read_table(folder / "gradient_log").to_pandas()
    assert len(whole) == 3 * 2 * ROWS and set(whole.member) == {0, 1, 2} and set(whole.epoch) == {1, 2}
    assert len(pq.read_table(folder / "gradient_log_heldout")) == 3 * 2 * 5
    path = pq.read_table(folder / "trajectory.parquet").to_pandas()
    steps = 2 * -(-ROWS // 4)
    assert set(path.step) == {0, *range(2, steps + 1, 2)} and set(path.member) == {0, 1, 2}
    assert all(len(sketch) == 64 for sketch in path.sketch) and (path[path.step > 0].update_norm > 0).all()
    model = new_model(SHAPE, tokenizer, 0)
    adapter = folder / "adapters" / "member=02" / "epoch=02"
    assert PeftModel.from_pretrained(model, str(adapter)).peft_config["default"].r == 2


@pytest.mark.parametrize(("steps", "spacing"), [(0, 10), (10_000, 10), (10_001, 11), (1_000_000, 1000)])
def test_sketches_are_bounded_in_a_long_epoch(steps, spacing):
    assert small_ensemble(trajectory_steps=10).space_sketches(steps) == spacing


def test_a_long_epoch_is_sketched_less_often(train, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_ensemble, "MAX_SKETCHES", 1)
    train("long", small_ensemble(m=1), pair=(0, 1))
    steps = -(-ROWS // 4)
    assert pq.read_table(tmp_path / "long" / "trajectory.parquet")["step"].to_pylist() == [0, steps]


def module_with(records_batch, how, model, adapters):
    module = ProxyEnsemble(FusedEngine(model, ResponseNLL(), 4096), StackState(adapters, {}, 0), how, range(3))
    module.log = lambda *_, **__: None
    loss = module.training_step(records_batch, 0)
    loss.backward()
    return module


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float64, 1e-7, 1e-12), (torch.float32, 1e-6, 1e-6)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_one_step_equals_adamw_on_the_loop_gradient(
    make_model, make_adapters, make_batch, architecture, dtype, rtol, atol
):
    model, adapters, _ = make_adapters(make_model(architecture, dtype))
    start = {name: value.clone() for name, value in adapters.items()}
    batch = make_batch([12, 5, 9, 7], [4, 4, 2, 3], members=3)
    # Without an eps above float32's rounding, AdamW's first step turns a gradient of rounding noise into a whole step.
    how = small_ensemble(warmup_steps=1, eps=1e-8 if dtype == torch.float64 else 1e-4)
    module = module_with(batch, how, model, adapters)
    chosen = module.configure_optimizers()
    chosen["optimizer"].step()
    for member in range(3):
        rows = [
            loop_gradients(
                model,
                {name: value[member] for name, value in start.items()},
                batch.input_ids[member, row, :length],
                batch.labels[member, row, :length],
            )[1]
            for row, length in enumerate([12, 5, 9, 7])
        ]
        slow = {name: torch.nn.Parameter(start[name][member].clone()) for name in start}
        for name, value in slow.items():
            value.grad = torch.stack([row[name] for row in rows]).mean(0)
        torch.optim.AdamW(slow.values(), lr=how.lr, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay).step()
        for name, value in slow.items():
            torch.testing.assert_close(module.adapters[name][member], value.detach(), rtol=rtol, atol=atol)


def test_each_member_is_clipped_by_its_own_norm(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    module = module_with(make_batch([12, 9], [4, 2], members=3), small_ensemble(clip_norm=None), model, adapters)
    free = [value.grad.clone() for value in module.stacked]
    norms = torch.stack([grad.flatten(1).square().sum(1) for grad in free]).sum(0).sqrt()
    limit = float(norms.sort().values[1])  # clips one member, leaves the others
    module.settings = small_ensemble(clip_norm=limit)
    module.configure_gradient_clipping(None)
    for before, value in zip(free, module.stacked, strict=True):
        factor = (limit / norms).clamp(max=1.0).view(-1, *[1] * (before.dim() - 1))
        torch.testing.assert_close(value.grad, before * factor, rtol=1e-5, atol=1e-12)


def test_an_infinite_loss_names_step_members_and_rows(make_model, make_adapters, make_batch):
    model, adapters, _ = make_adapters(make_model())
    name = next(iter(adapters))
    adapters[name][1] = float("nan")
    module = ProxyEnsemble(
        FusedEngine(model, ResponseNLL(), 4096), StackState(adapters, {}, 0), small_ensemble(), range(3)
    )
    with pytest.raises(UserError, match=r"members \[1\], rows \[17, 18\].*lower the learning rate"):
        module.training_step(make_batch([12, 9], [4, 2], members=3, ids=[17, 18]), 0)


@pytest.mark.parametrize("change", [{"m": 0}, {"collect": "sometimes"}, {"lr": -1.0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match=f"{next(iter(change))} must be"):
        small_ensemble(**change)
