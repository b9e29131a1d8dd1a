"""Building from a configuration: which option an error names."""

import logging

import pytest
from omegaconf import OmegaConf

from gradfiltering.config.build import build, build_trainer_builder
from gradfiltering.config.option_names import find_option_paths, options_named
from gradfiltering.errors import UserError
from gradfiltering.options import PositiveInt, ShareBelowOne, model_validator, options


@options
class Adapter:
    """A part of a part."""

    rank: PositiveInt
    dropout: ShareBelowOne = 0.0


@options
class Part:
    """Something that a run needs."""

    adapter: Adapter
    early: int = 1
    late: int = 2

    @model_validator(mode="after")
    def _check_order(self):
        if self.early >= self.late:
            raise UserError("early must come before late", arguments=("early", "late"))
        return self


def configuration(**part):
    adapter = {"_target_": f"{__name__}.Adapter", "rank": part.pop("rank", 8)}
    return OmegaConf.create(
        {
            "proxy": {"part": {"_target_": f"{__name__}.Part", "adapter": adapter, **part}},
            "target": {"adapter": {**adapter, "rank": 4}},
        }
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "proxy.part.adapter.rank=0: give a positive whole number"),
        ({"early": 3}, "early must come before late (proxy.part.early=3, proxy.part.late)"),
        ({"late": "x"}, "proxy.part.late=x: give a whole number"),
    ],
)
def test_refused_value_names_its_option(values, message):
    cfg = configuration(**values)
    with pytest.raises(UserError) as refused:
        build(cfg.proxy.part)
    assert str(refused.value) == message


def test_error_during_a_run_names_the_option_of_its_owner():
    cfg = configuration()
    part = build(cfg.proxy.part)
    assert find_option_paths(cfg, Adapter) == ["proxy.part.adapter", "target.adapter"]
    with pytest.raises(UserError, match=r"^the rank is too high \(proxy.part.adapter.rank=8\)$"), options_named(cfg):
        raise UserError("the rank is too high", part.adapter, ["rank"])
    with pytest.raises(UserError, match=r"^nobody is to blame$"), options_named(cfg):
        raise UserError("nobody is to blame")


def test_trainers_are_built_without_notes_on_devices_and_advice(caplog):
    settings = {"_target_": "lightning.Trainer", "_partial_": True, "accelerator": "cpu", "devices": 1}
    build_trainer = build_trainer_builder(OmegaConf.create({"trainer": settings}))
    for name in ("lightning.pytorch", "lightning.fabric"):  # as Lightning leaves them when it is imported
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(caplog.handler)
    try:
        build_trainer(logger=False)
    finally:
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).removeHandler(caplog.handler)
    assert caplog.messages == []
