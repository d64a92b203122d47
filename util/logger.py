"""Meters over the steps of an epoch, printed as the original prints them."""

import datetime
import sys
import time
from collections import defaultdict, deque

import numpy as np
from tqdm import tqdm

from util import dist, launch


class SmoothedValue:
    """A series of numbers: its last `window_size` values, and the average of all of them."""

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
        """The lower median of the window, as torch.median computes it."""
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
    """Named meters, and a loop that prints them with time and eta (original: `MetricLogger`)."""

    def __init__(self, delimiter="  "):
        self.meters = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def add_meter(self, name, meter):
        self.meters[name] = meter

    def update(self, **values):
        for name, value in values.items():
            self.meters[name].update(float(value))

    def averages(self):
        """The global average of every meter: what goes into log.txt."""
        return {name: meter.global_avg for name, meter in self.meters.items() if meter.count}

    def synchronize_between_processes(self):
        """Takes all processes' values into the averages; the windows stay this process's.

        One that has no value of its own, because all its samples were left out, shows the average.
        """
        gathered = dist.all_gather(
            {name: (meter.total, meter.count) for name, meter in self.meters.items()}
        )
        for name in {name: None for each in gathered for name in each}:
            total, count = np.sum([each.get(name, (0, 0)) for each in gathered], axis=0)
            meter = self.meters[name]
            meter.total, meter.count = float(total), int(count)
            if meter.count and not meter.deque:
                meter.deque.append(meter.global_avg)

    def state_dict(self):
        """Everything the meters hold, in plain containers."""
        return {
            name: {"deque": list(meter.deque), "total": meter.total, "count": meter.count}
            for name, meter in self.meters.items()
        }

    def load_state_dict(self, state):
        """Puts back what `state_dict` returned.

        Meters with another window or format have to be added before.
        """
        for name, values in state.items():
            meter = self.meters[name]
            meter.deque.extend(values["deque"])
            meter.total, meter.count = values["total"], values["count"]

    def __str__(self):
        return self.delimiter.join(
            f"{name}: {meter}" for name, meter in self.meters.items() if meter.count
        )

    def log_every(self, iterable, print_freq, header, start=0):
        """Yields the items of `iterable`, numbered from `start` on, and shows progress.

        On a terminal this is a bar with eta and losses; elsewhere, and with several processes, a
        line every `print_freq` items, as the original's.
        """
        total = len(iterable)
        iter_time, data_time = SmoothedValue(fmt="{avg:.4f}"), SmoothedValue(fmt="{avg:.4f}")
        begin = end = time.time()
        # mpirun gives every process a terminal of its own, even where its own output goes into a
        # file.
        disable = True if launch.get_world_size() > 1 else None
        with tqdm(
            total=total,
            desc=header,
            file=sys.stdout,
            disable=disable,
            dynamic_ncols=True,
            initial=start,
        ) as bar:
            for i, item in enumerate(iterable, start):
                data_time.update(time.time() - end)
                yield item
                iter_time.update(time.time() - end)
                bar.set_postfix_str(self._short(), refresh=False)
                bar.update()
                if bar.disable and (i % print_freq == 0 or i == total - 1):
                    eta = datetime.timedelta(seconds=int(iter_time.global_avg * (total - i)))
                    counter = f"[{i:>{len(str(total))}}/{total}]"
                    print(
                        self.delimiter.join(
                            filter(
                                None,
                                [
                                    header,
                                    counter,
                                    f"eta: {eta}",
                                    str(self),
                                    f"time: {iter_time}",
                                    f"data: {data_time}",
                                ],
                            )
                        ),
                        flush=True,
                    )
                end = time.time()
        elapsed = time.time() - begin
        print(
            f"{header} Total time: {datetime.timedelta(seconds=int(elapsed))} "
            f"({elapsed / max(1, total - start):.4f} s / it)",
            flush=True,
        )

    def _short(self):
        """The losses that fit into a line of a terminal."""
        names = [
            name for name in ("loss", "loss_ce", "loss_bbox", "loss_giou") if name in self.meters
        ]
        return self.delimiter.join(f"{name}: {self.meters[name].median:.3f}" for name in names)
