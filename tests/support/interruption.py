"""Stopping a training as a killed process would stop it, but within the test's process."""

import lightning as L

from tests.support.pipeline import quiet_trainer


class KilledHere(Exception):
    pass


class Steps(L.Callback):
    """Counts training steps, and stops the run before a given one."""

    def __init__(self, until=None):
        self.taken, self.until = 0, until

    def on_train_batch_start(self, *_):
        if self.taken == self.until:
            raise KilledHere
        self.taken += 1


def counting(steps):
    """A builder of trainers whose steps are counted by `steps`."""

    def build(callbacks=(), **options):
        return quiet_trainer(callbacks=[*callbacks, steps], **options)

    return build
