"""Metric logging in the original's format."""

import datetime
import sys
import time
from collections import defaultdict, deque

import numpy as np
from tqdm import tqdm

from util import dist, launch
from util.backend import jt


class SmoothedValue:
    """Track a series of values: the last `window_size` and the global average."""

    def __init__(self, window_size=20, fmt="{median:.4f} ({global_avg:.4f})"):
        self.deque = deque(maxlen=window_size)
        self.total = 0.0
        self.count = 0
        self.fmt = fmt

    def update(self, value):
        self.deque.append(value)
        self.total += value
        self.count += 1

    @property
    def median(self):
        """Return the lower median of the window, as torch.median does."""
        return sorted(self.deque)[(len(self.deque) - 1) // 2]

    @property
    def avg(self):
        return float(np.mean(self.deque))

    @property
    def global_avg(self):
        return self.total / self.count

    @property
    def value(self):
        return self.deque[-1]

    def __str__(self):
        return self.fmt.format(
            median=self.median, avg=self.avg, global_avg=self.global_avg, value=self.value
        )


class MetricLogger:
    """Collect named meters, and print them with timing and ETA while iterating.

    Source: `MetricLogger` of the original.
    """

    def __init__(self, delimiter="  "):
        self.meters = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def add_meter(self, name, meter):
        self.meters[name] = meter

    def update(self, **values):
        for name, value in values.items():
            self.meters[name].update(float(value))

    def averages(self):
        """Return every meter's global average, as written to log.txt."""
        return {name: meter.global_avg for name, meter in self.meters.items() if meter.count}

    def synchronize_between_processes(self):
        """Average over all processes; windows stay local. A collective.

        A process without values, because all its samples were skipped, shows the average.
        """
        own = {name: (meter.total, meter.count) for name, meter in self.meters.items()}
        gathered = dist.all_gather(own)
        for name in {name: None for each in gathered for name in each}:
            total, count = np.sum([each.get(name, (0, 0)) for each in gathered], axis=0)
            meter = self.meters[name]
            meter.total, meter.count = float(total), int(count)
            if meter.count and not meter.deque:
                meter.deque.append(meter.global_avg)

    def state_dict(self):
        """Return the meters' content in plain containers."""
        return {
            name: {"deque": list(meter.deque), "total": meter.total, "count": meter.count}
            for name, meter in self.meters.items()
        }

    def load_state_dict(self, state):
        """Restore what `state_dict` returned. Add meters with a custom window or format first."""
        for name, values in state.items():
            meter = self.meters[name]
            meter.deque.extend(values["deque"])
            meter.total, meter.count = values["total"], values["count"]

    def __str__(self):
        return self.delimiter.join(
            f"{name}: {meter}" for name, meter in self.meters.items() if meter.count
        )

    def log_every(self, iterable, print_freq, header, start=0):
        """Yield the items of `iterable`, numbered from `start`, and print progress.

        On a terminal show a bar with eta and losses; otherwise, and with several processes, print a
        line every `print_freq` items, as the original does.
        """
        total = len(iterable)
        iter_time, data_time = SmoothedValue(fmt="{avg:.4f}"), SmoothedValue(fmt="{avg:.4f}")
        begin = end = time.time()
        # mpirun gives each process a pseudo-terminal, even if its own output goes to a file.
        max_memory = 0
        off = True if launch.get_world_size() > 1 else None  # None: unless on a terminal
        style = dict(desc=header, file=sys.stdout, disable=off, dynamic_ncols=True)
        with tqdm(total=total, initial=start, **style) as bar:
            for i, item in enumerate(iterable, start):
                data_time.update(time.time() - end)
                yield item
                iter_time.update(time.time() - end)
                bar.set_postfix_str(self._format_losses(), refresh=False)
                bar.update()
                if bar.disable and (i % print_freq == 0 or i == total - 1):
                    eta = datetime.timedelta(seconds=int(iter_time.global_avg * (total - i)))
                    counter = f"[{i:>{len(str(total))}}/{total}]"
                    times = f"time: {iter_time}", f"data: {data_time}"
                    words = [header, counter, f"eta: {eta}", str(self), *times]
                    if jt.flags.use_cuda:  # Jittor keeps what it has allocated
                        max_memory = max(max_memory, jt.get_mem_info().total_cuda_used)
                        words.append(f"max mem: {max_memory / 2**20:.0f}")
                    print(self.delimiter.join(filter(None, words)), flush=True)
                end = time.time()
        elapsed = time.time() - begin
        print(
            f"{header} Total time: {datetime.timedelta(seconds=int(elapsed))} "
            f"({elapsed / max(1, total - start):.4f} s / it)",
            flush=True,
        )

    def _format_losses(self):
        losses = ("loss", "loss_ce", "loss_bbox", "loss_giou")
        names = [name for name in losses if name in self.meters]
        return self.delimiter.join(f"{name}: {self.meters[name].median:.3f}" for name in names)
