"""Meters and the lines that they print, in the original's format."""

import io
import re
import sys
from types import SimpleNamespace

import pytest

from util.logger import MetricLogger, SmoothedValue


def make_meter(*values, **settings):
    meter = SmoothedValue(**settings)
    for value in values:
        meter.update(value)
    return meter


@pytest.mark.parametrize(
    "values, median", [((3, 1), 1), ((4, 1, 3, 2), 2), ((5, 1, 3), 3), ((7,), 7)]
)
def test_the_median_is_the_lower_one_as_in_pytorch(values, median):
    assert make_meter(*values).median == median


def test_the_window_limits_all_but_the_global_average():
    meter = make_meter(100, 1, 2, 6, window_size=3)
    assert (meter.median, meter.avg, meter.value, meter.global_avg) == (2, 3, 6, 109 / 4)
    assert str(meter) == "2.0000 (27.2500)"
    assert str(make_meter(0.1, 0.25, window_size=1, fmt="{value:.2f}")) == "0.25"


def test_averages_are_over_all_steps():
    logger = MetricLogger()
    for i in range(50):
        logger.update(loss=i, lr=1e-4)
    assert logger.averages() == {"loss": pytest.approx(24.5), "lr": pytest.approx(1e-4)}
    assert str(logger) == "loss: 39.0000 (24.5000)  lr: 0.0001 (0.0001)"


def test_a_process_without_samples_shows_the_averages_of_the_others(monkeypatch):
    logger = MetricLogger()
    logger.add_meter("loss", SmoothedValue())
    others = {"loss": (6.0, 3), "class_error": (8.0, 4)}
    monkeypatch.setattr("util.dist.all_gather", lambda own: [own, others])
    logger.synchronize_between_processes()
    assert str(logger) == "loss: 2.0000 (2.0000)  class_error: 2.0000 (2.0000)"


def test_without_a_terminal_a_line_is_printed_every_ten_steps(capsys):
    logger = MetricLogger()
    items = []
    for item in logger.log_every(range(25), 10, "Epoch: [3]"):
        logger.update(loss=item)
        items.append(item)
    *lines, total = capsys.readouterr().out.splitlines()
    assert items == list(range(25))
    losses = {0: "0.0000 (0.0000)", 10: "5.0000 (5.0000)"}
    losses |= {20: "10.0000 (10.0000)", 24: "14.0000 (12.0000)"}
    assert len(lines) == len(losses), "every tenth step and the last one"
    for line, (step, loss) in zip(lines, losses.items()):
        expected = (
            rf"Epoch: \[3\]  \[{step:2}/25\]  eta: 0:00:00  loss: {re.escape(loss)}  "
            r"time: 0\.\d{4}  data: 0\.\d{4}"
        )
        assert re.fullmatch(expected, line), line
    assert re.fullmatch(r"Epoch: \[3\] Total time: 0:00:00 \(0\.\d{4} s / it\)", total)


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    logger = MetricLogger()
    for item in logger.log_every(range(25), 10, "Epoch: [3]"):
        logger.update(loss=item, loss_ce=1, lr=1e-4)
    *_, bar, total = terminal.getvalue().splitlines()
    final = bar.split("\r")[-1]
    assert "Epoch: [3]: 100%" in final and " 25/25 " in final
    assert "loss: 14.000  loss_ce: 1.000" in final
    assert "eta: " not in terminal.getvalue() and total.startswith("Epoch: [3] Total time: 0:00:00")


def test_with_cuda_lines_end_with_the_memory_that_jittor_has_held(monkeypatch, capsys):
    held = iter([3, 5, 4])

    def get_mem_info():
        return SimpleNamespace(total_cuda_used=next(held) * 2**20)

    jt = SimpleNamespace(flags=SimpleNamespace(use_cuda=1), get_mem_info=get_mem_info)
    monkeypatch.setattr("util.logger.jt", jt)
    list(MetricLogger().log_every(range(15), 10, "Epoch: [0]"))
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert [line.split("  ")[-1] for line in lines] == [f"max mem: {each}" for each in (3, 5, 5)]
