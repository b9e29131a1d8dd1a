"""Members on resampled rows: each on a bootstrap sample of its own, measured on all rows."""

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gradfiltering.data.length_buckets import LengthBuckets
from gradfiltering.ensembles.bootstrap_ensemble import BootstrapEnsemble
from gradfiltering.errors import UserError
from tests.support.small_ensembles import ROWS, assert_same_member, ensemble_of_kind, small_ensemble

LENGTHS = np.random.default_rng(0).integers(5, 120, size=2003)


def buckets(seed=0):
    return LengthBuckets.of(LENGTHS, 8, 3, seed)


def resampled(seed=0):
    plain = buckets(seed)
    return LengthBuckets(plain.buckets, plain.batch_size, seed, resampled=True)


def drawn(member, epoch=1, seed=0):
    return Counter(np.concatenate(resampled(seed).epoch(member, epoch)).tolist())


def test_a_member_draws_n_rows_with_replacement_once():
    first = drawn(0)
    assert sum(first.values()) == len(LENGTHS)
    assert first == drawn(0, epoch=2), "a member has one sample, not one an epoch"
    assert first != drawn(1) and first != drawn(0, seed=1)
    missed = 1 - len(first) / len(LENGTHS)
    assert abs(missed - np.exp(-1)) < 4 * (0.1 / len(LENGTHS)) ** 0.5  # variance (e - 2)/e² of the empty cells' share
    inside = [Counter(np.isin(list(first.elements()), rows).sum() for rows in plain.buckets) for plain in [buckets()]]
    assert len(inside[0]) > 1, "drawn bucket by bucket, not from all rows"


def test_every_row_is_as_likely():
    times = np.zeros(len(LENGTHS))
    for member in range(200):
        for row, count in drawn(member).items():
            times[row] += count
    assert abs(times.mean() - 200) < 1e-9
    assert 0.85 < times.var() / 200 < 1.15  # Poisson
    assert np.abs(times - 200).max() < 6 * 200**0.5


def test_order_differs_between_epochs_and_lengths_agree():
    assert not all(np.array_equal(a, b) for a, b in zip(resampled().epoch(0, 1), resampled().epoch(0, 2), strict=True))
    widths = [[int(LENGTHS[rows].max()) for rows in resampled().epoch(member, 1)] for member in range(3)]
    usual = [[int(LENGTHS[rows].max()) for rows in buckets().epoch(member, 1)] for member in range(3)]
    padded = lambda found: np.max(found, axis=0).sum() / np.mean(found, axis=0).sum()  # noqa: E731
    assert [len(rows) for rows in resampled().epoch(0, 1)] == [len(rows) for rows in buckets().epoch(5, 1)]
    assert padded(widths) < padded(usual) + 0.1


def test_members_start_like_those_of_the_lora_ensemble(train, tmp_path):
    small, large = (
        train("m1", ensemble_of_kind(BootstrapEnsemble, m=1), (0, 1)),
        train("m3", ensemble_of_kind(BootstrapEnsemble), (0, 1)),
    )
    assert train.report.costs.trained == 3 and train.report.members == 3
    assert_same_member(small, large, 0, epochs=(0, 1))
    lora = train("lora", pair=(0, 1))
    for member in range(3):
        assert_same_member(large, lora, member, epochs=(0,))
        assert not np.allclose(large.epoch(1).grad_norm[member], lora.epoch(1).grad_norm[member], rtol=1e-3)
    assert large.epoch(1).grad_norm.shape == (3, ROWS), "all rows are logged, not only those trained on"
    files = [tmp_path / run / "adapters/member=01/epoch=00/adapter_model.safetensors" for run in ("m3", "lora")]
    ours, theirs = (load_file(file) for file in files)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_cache_tells_members_from_the_lora_ensembles(train, tmp_path):
    cache = tmp_path / "shared"
    train("lora", cache=cache)
    train("first", ensemble_of_kind(BootstrapEnsemble, m=2), cache=cache)
    assert train.report.costs.trained == 2 * 2
    train("more", ensemble_of_kind(BootstrapEnsemble), cache=cache)
    assert train.report.costs.trained == 2
    train("again", ensemble_of_kind(BootstrapEnsemble), cache=cache)
    assert train.report.reused


def test_online_is_refused():
    with pytest.raises(UserError, match=r"cannot collect online.*63 %.*LoRA ensemble"):
        ensemble_of_kind(BootstrapEnsemble, small_ensemble(collect="online"))
