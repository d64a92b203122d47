"""Forecast when a training run will end."""

import time
from datetime import datetime, timedelta

from tqdm import tqdm


class Forecast:
    """Measure steps and evaluations, and extrapolate them to the end of the run.

    Args:
        num_steps: steps per epoch.
        num_eval_steps: how many training steps have as many images as an evaluation.
        epochs: number of epochs of the whole run.
        eval_interval: evaluate every so many epochs, and after the last one.
        may_stop_early: whether the run may end before the last epoch.
    """

    WARM_UP = 10  # steps that are not measured, because Jittor compiles in some of them
    STEPS = 50  # steps before the first forecast

    def __init__(self, num_steps, num_eval_steps, epochs, eval_interval, may_stop_early=False):
        self.num_steps, self.num_eval_steps = num_steps, num_eval_steps
        self.epochs, self.eval_interval = epochs, eval_interval
        self.limit = "at most " if may_stop_early else ""
        self.steps = self.measured = self.train_time = 0
        self.last = None  # when the last step of the current epoch ended
        self.after_training = {}  # seconds, by whether the epoch was evaluated

    def finish_step(self, epoch, step):
        """Record the end of a step; print the first forecast after STEPS steps.

        epoch: counts from 0; step: number of steps taken in it.
        """
        now = time.time()
        self.steps += 1
        if self.last is not None and self.steps > self.WARM_UP:
            self.train_time += now - self.last
            self.measured += 1
        self.last = now
        if self.steps == self.STEPS and self.measured:
            tqdm.write(f"forecast: {self.describe(epoch, step)}")  # moves a bar out of the way

    def finish_epoch(self, epoch):
        """Record the end of an epoch, after its evaluation, and return the forecast, or ""."""
        if self.last is None:  # a resumed run has only evaluated the epoch
            return ""
        self.after_training[self._is_evaluated(epoch)] = time.time() - self.last
        self.last = None
        if not self.measured or epoch + 1 == self.epochs:
            return ""
        return self.describe(epoch, self.num_steps)

    def describe(self, epoch, step):
        """Return the time per epoch and for the rest of the run, and the date of its end."""
        step_time = self.train_time / self.measured
        # Until an evaluation is measured: a forward pass takes about a third of a training step.
        evaluation = self.after_training.get(True, self.num_eval_steps * step_time / 3)
        other = self.after_training.get(False, 0)
        evaluated = [self._is_evaluated(i) for i in range(epoch, self.epochs)]
        if step == self.num_steps:  # the current epoch is over
            evaluated = evaluated[1:]
        steps_left = len(evaluated) * self.num_steps - (step % self.num_steps)
        left = steps_left * step_time + sum(evaluation if each else other for each in evaluated)
        per_epoch = self.num_steps * step_time + (evaluation if self.eval_interval == 1 else other)
        end = datetime.now() + timedelta(seconds=left)
        return (
            f"{format_seconds(per_epoch)} per epoch, {self.limit}{format_seconds(left)} until the "
            f"end, on {end:%Y-%m-%d %H:%M}"
        )

    def _is_evaluated(self, epoch):
        return (epoch + 1) % self.eval_interval == 0 or epoch + 1 == self.epochs


def format_seconds(seconds):
    """Format a duration as Python does, without fractions: "1 day, 2:03:04"."""
    return str(timedelta(seconds=round(seconds)))
