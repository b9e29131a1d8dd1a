"""A sweep is refused for a mistake in any of its overrides before its first job starts, without composing every job."""

import subprocess
import sys
from itertools import product
from pathlib import Path

from hydra_plugins.gradfiltering_sweeper import covering

ROOT = Path(__file__).parents[2]


def test_every_override_is_in_a_job_that_is_composed_and_few_jobs_are():
    batch = [list(job) for job in product(("m=3", "m=5"), ("e=1", "e=2", "e=3"), ("s=a", "s=b", "s=c", "s=d"))]
    composed = covering(batch)
    assert {override for job in composed for override in job} == {override for job in batch for override in job}
    assert len(composed) == 1 + (2 - 1) + (3 - 1) + (4 - 1)


def test_a_mistake_in_the_last_job_shows_before_the_first_starts(tmp_path):
    sweep = ["-m", "scorer=random,nosuch", f"hydra.sweep.dir={tmp_path}", f"cache.path={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep, "until=data"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "nosuch" in done.stderr
    assert not (tmp_path / "0").exists()
