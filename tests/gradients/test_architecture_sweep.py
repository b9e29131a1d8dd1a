"""Both engines against the loop for every causal architecture of transformers, where special arithmetic matters."""

import pytest

from tests.support.architectures import NotSmallError, causal_architectures, compare_engines

TOLERANCE = 1e-9
# With the engine that serves each: soft caps, windows, sinks, ALiBi, parallel blocks, flattened states, routing.
SAMPLE = {
    "gpt2": "fused", "qwen2": "fused", "gemma2": "fused", "gemma3_text": "fused", "mistral": "fused", "phi": "fused",
    "opt": "fused", "falcon": "fused", "bloom": "fused", "mpt": "fused", "mixtral": "fused", "qwen2_moe": "fused",
    "gpt_oss": "fused", "cohere2": "fused", "hrm_text": "vmap",
}  # fmt: skip


@pytest.mark.parametrize("model_type", SAMPLE)
def test_engines_equal_the_loop_and_auto_takes_one(model_type):
    chosen, comparisons = compare_engines(model_type)
    assert chosen == SAMPLE[model_type]
    for name, comparison in comparisons.items():
        assert comparison.refusal or comparison.difference < TOLERANCE, f"{name} gives wrong numbers"
    assert not comparisons[chosen].refusal


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(causal_architectures()) - set(SAMPLE)))
def test_engines_equal_the_loop_or_are_refused(model_type):
    try:
        _, comparisons = compare_engines(model_type)
    except NotSmallError as error:
        pytest.skip(str(error))
    for name, comparison in comparisons.items():
        assert comparison.refusal or comparison.difference < TOLERANCE, f"{name} gives wrong numbers"
