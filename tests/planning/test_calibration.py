"""Speed is taken from work that is warm."""

import torch

from gradfiltering.planning import calibration
from gradfiltering.planning.calibration import time_work


def test_first_run_is_never_counted(monkeypatch):
    for seconds, expected_seconds in (([9.0, 4.0], 4.0), ([0.3, 0.1, 0.2, 0.3, 0.2], 0.2)):
        clock = iter(seconds)
        monkeypatch.setattr(calibration, "_time_once", lambda compute, device, clock=clock: next(clock))
        rate = time_work(lambda: None, operations=100, device=torch.device("cpu"))
        assert rate == 100 / expected_seconds
        assert next(clock, None) is None, "every run was needed"
