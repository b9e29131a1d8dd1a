import csv

import numpy as np
import yaml
from lightning.pytorch.loggers import CSVLogger

from gradfiltering.report.tracking import close_logger, log_histogram, log_summary, open_logger

SUMMARY = {
    "data": {"examples": 20, "unscored": 1},
    "diagnostics": {"easiness": 0.5, "warnings": ["x"], "relative_variance": {"1": 0.25, "2": None}},
    "pws": {"full": {"all": {"value": 1.25, "wins": 3}}},
    "selection": {"scorer": "gsnr", "selected": 2},
    "stages": [{"name": "proxy", "seconds": 1.0, "reused": True}],
}


def test_numbers_reach_the_logger_by_path(tmp_path):
    logger = open_logger(lambda: CSVLogger(str(tmp_path), name="metrics", version=""), {"seed": 5})
    log_summary(logger, SUMMARY)
    log_histogram(logger, "score/histogram", np.ones(3))  # drawn by W&B alone
    close_logger(logger)
    with (tmp_path / "metrics" / "metrics.csv").open() as file:
        logged = [(name, float(value)) for row in csv.DictReader(file) for name, value in row.items() if value]
    assert {name: value for name, value in logged if name != "step"} == {
        "data/examples": 20, "data/unscored": 1, "diagnostics/easiness": 0.5, "diagnostics/relative_variance/1": 0.25,
        "pws/full/all/value": 1.25, "pws/full/all/wins": 3, "selection/selected": 2,
    }  # fmt: skip
    assert yaml.safe_load((tmp_path / "metrics" / "hparams.yaml").read_text()) == {"seed": 5}
