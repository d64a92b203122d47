"""The forecast of a run's end, with a clock that the tests set."""

from datetime import datetime

import pytest

from util import forecast
from util.forecast import Forecast


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(forecast.time, "time", clock.time)
    return clock


def take_steps(run, clock, epoch, count, seconds, start=0):
    for step in range(start, count):
        clock.now += seconds
        run.finish_step(epoch, step + 1)


def test_the_first_forecast_comes_after_50_steps_and_leaves_out_compilation(clock, capsys):
    run = Forecast(num_steps=100, num_eval_steps=30, epochs=10, eval_interval=1)
    take_steps(run, clock, 0, 10, seconds=60)  # Jittor compiles
    take_steps(run, clock, 0, 49, seconds=2, start=10)
    assert capsys.readouterr().out == ""
    take_steps(run, clock, 0, 50, seconds=2, start=49)
    # An epoch: 100 steps of 2 s, and an evaluation of 30 steps in a third of the time.
    left = 950 * 2 + 10 * 20
    out = capsys.readouterr().out
    assert out.startswith("forecast: 0:03:40 per epoch, 0:35:00 until the end, on 2")
    date = datetime.strptime(out.strip().rpartition("on ")[2], "%Y-%m-%d %H:%M")
    assert abs((date - datetime.now()).total_seconds() - left) < 120
    take_steps(run, clock, 0, 100, seconds=2, start=50)
    assert capsys.readouterr().out == ""


def test_measured_evaluations_replace_the_estimate(clock):
    run = Forecast(num_steps=20, num_eval_steps=1, epochs=4, eval_interval=2)
    texts = []
    for epoch in range(4):
        take_steps(run, clock, epoch, 20, seconds=1)
        clock.now += 100 if epoch % 2 else 5
        texts.append(run.finish_epoch(epoch))
    assert [text.partition(" until")[0] for text in texts] == [
        # 3 epochs of 20 s; 5 s of saving after one of them, and 1/3 s for two evaluations
        "0:00:25 per epoch, 0:01:06",
        "0:00:25 per epoch, 0:02:25",
        "0:00:25 per epoch, 0:02:00",
        "",
    ]


def test_small_epochs_and_resumed_runs(clock, capsys):
    """Evaluations between the first 50 steps are not taken for steps."""
    run = Forecast(num_steps=10, num_eval_steps=0, epochs=100, eval_interval=100)
    assert run.finish_epoch(0) == ""  # resumed at an evaluation
    for epoch in range(5):
        take_steps(run, clock, epoch, 10, seconds=1)
        clock.now += 1000
        run.finish_epoch(epoch)
    assert "forecast: 0:16:50 per epoch" in capsys.readouterr().out


def test_a_run_that_may_stop_early_takes_at_most_that_long(clock):
    run = Forecast(20, 0, epochs=3, eval_interval=1, may_stop_early=True)
    take_steps(run, clock, 0, 20, seconds=1)
    assert "per epoch, at most 0:00:40 until the end" in run.finish_epoch(0)
