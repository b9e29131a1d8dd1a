"""Options of earlier versions are refused with their new names."""

import pytest

from gradfiltering.config.renamed_options import REMOVED_CHOICES, RENAMED_OPTIONS, explain_renamed
from gradfiltering.errors import UserError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("store.path=x", "store.path is called cache.path now; give cache.path=x"),
        ("proxy.backbone.layers=2", "give proxy.base_model.layers=2"),
        ("target.backbone.layers=1,2", "give target.base_model.layers=1,2"),
        ("++store.path=x", "give cache.path=x"),
        ("gradients=loop", "gradients=loop is gone; give gradients=vmap"),
        ("gradients=fused,loop", "gradients=loop is gone"),
        ("epochs=e0_e1", "give epochs.early=0 epochs.late=1"),
    ],
)
def test_old_option_names_the_new(override, message):
    with pytest.raises(UserError) as refused:
        explain_renamed(["seed=1", override])
    assert message in str(refused.value)


def test_present_options_pass():
    explain_renamed(["-m", "cache.path=store.x", "epochs=e1_e2", "gradients=vmap,fused", "proxy.base_model.layers=1"])


def test_the_changelog_lists_every_renamed_option(changelog):
    for old_name, new_name in RENAMED_OPTIONS.items():
        assert f"`{old_name.rstrip('.')}`" in changelog and f"`{new_name.rstrip('.')}`" in changelog, old_name
    assert all(f"`{choice}`" in changelog for choice in REMOVED_CHOICES)
