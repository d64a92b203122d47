"""Load batches of a dataset in a fixed order, in Jittor's data workers.

Every pass starts its own workers, as PyTorch does by default, so that they see the dataset of the
current epoch and none outlives the pass.

Source: `torch.utils.data.DataLoader`, the samplers and `collate_fn` in the original.
"""

import gc
import time
import traceback
from multiprocessing.util import Finalize
from typing import NamedTuple, Optional

import numpy as np

from util.backend import jt
from util.errors import InputError
from util.memory import return_freed_memory
from util.misc import NestedTensor, nested_tensor_from_arrays
from util.signals import block_signals_in_children, die_with_parent


class DataLoader:
    """Yield the steps of one epoch. Batches are bitwise identical for any `num_workers`.

    A step is a list of `accum_steps` batches `(samples, targets)`:
    samples: NestedTensor of NumPy arrays, tensors float32 [B, 3, H, W] and mask bool [B, H, W],
    True on padding.
    targets: list of B target dictionaries (see `datasets.coco.CocoDetection`).
    If the dataset skips bad samples, they are dropped from their batch; an empty batch is `(None,
    [])`. The number of skipped samples is printed at the end of the epoch.

    Within a step, rank 0 gets the first `accum_steps` batches, rank 1 the next, and so on. So one
    process that accumulates four batches sees the same batches as four processes. The last step may
    be incomplete: with `drop_last` it is dropped; otherwise ranks without a batch get `(None, [])`.

    Args:
        dataset: has `__len__`, `__getitem__`, `skip_bad_samples` (whether to leave out items that
            raise InputError) and `max_size`, the longer side of its images in pixels, which
            determines the size of the workers' buffers; `set_epoch` sets its `epoch`.
        batch_size: images per batch.
        shuffle: shuffle each epoch, seeded with `seed` and the epoch. drop_last: leave out an
        incomplete last step.
        num_workers: number of data workers; 0 loads in this process.
        indices: int64 [n], the dataset's items to load; default: all.

    Raises:
        InputError: if the dataset is too small for one step; while iterating, if the dataset raises
            it or a worker dies.
        RuntimeError: while iterating, if a worker fails with any other exception.
    """

    def __init__(
        self,
        dataset,
        batch_size,
        shuffle=False,
        drop_last=False,
        num_workers=0,
        seed=0,
        rank=0,
        world_size=1,
        accum_steps=1,
        indices=None,
    ):
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self.shuffle, self.drop_last, self.seed = shuffle, drop_last, seed
        self.rank, self.world_size, self.accum_steps = rank, world_size, accum_steps
        self.indices = np.arange(len(dataset)) if indices is None else indices
        self.set_epoch(0)
        if len(self) == 0:
            steps = f" for each of --accum_steps {accum_steps}" if accum_steps > 1 else ""
            processes = f" for each of {world_size} processes" if world_size > 1 else ""
            raise InputError(
                f"--batch_size {batch_size}: the dataset has only {len(self.indices)} images, less "
                f"than one batch{steps}{processes}; use a smaller batch or more images"
            )

    def __len__(self):
        """Return the number of steps."""
        full, rest = divmod(len(self.indices), self._step_size())
        return full + (rest > 0 and not self.drop_last)

    def _step_size(self):
        """Return the number of images in a step of all processes."""
        return self.world_size * self.accum_steps * self.batch_size

    def set_epoch(self, epoch, start=0):
        """Set the epoch of the next iteration.

        epoch: seeds the shuffling and the augmentation; start: step to start from.
        """
        self.epoch = epoch
        self.dataset.epoch = epoch
        self.start = start

    def __iter__(self):
        skipped, step = [], []
        for samples, targets, bad in self._batches():
            skipped += bad
            step.append((samples, targets))
            if len(step) == self.accum_steps:
                yield step
                step = []
        if skipped:
            print(f"left out {len(skipped)} samples that cannot be used; the first: {skipped[0]}")

    def _batches(self):
        """Yield what `load_batch` returns for each batch of the pass."""
        order = self._order()
        if self.num_workers == 0:
            for number in range(len(order.starts)):
                yield load_batch(self.dataset, order.batch(number))
            return
        workers = BatchWorkers(
            self.dataset, order, self.num_workers, ring_size(self.batch_size, self.dataset.max_size)
        )
        try:
            for number in range(len(order.starts)):
                yield workers.receive(number)
        finally:
            workers.close()

    def _order(self):
        """Return this rank's remaining batches of the epoch."""
        indices = self.indices
        if self.shuffle:
            indices = np.random.default_rng([self.seed, self.epoch]).permutation(indices)
        steps = np.arange(self.start, len(self)) * self._step_size()
        batches = (self.rank * self.accum_steps + np.arange(self.accum_steps)) * self.batch_size
        return Order(indices, (steps[:, None] + batches).reshape(-1), self.batch_size)


class Order(NamedTuple):
    """The dataset indices of each batch.

    indices: int64, the items in the order of loading; starts: int64, offset of each batch in
    `indices`. Arrays, because reading Python ints in a forked worker triggers copy-on-write.
    """

    indices: np.ndarray
    starts: np.ndarray
    batch_size: int

    def batch(self, number):
        """Return the list of a batch's items."""
        start = self.starts[number]
        return self.indices[start : start + self.batch_size].tolist()


def load_batch(dataset, indices):
    """Load items and pad them into one batch.

    Return (samples, targets, messages about skipped items).
    """
    items, skipped = [], []
    for index in indices:
        try:
            items.append(dataset[index])
        except InputError as error:
            if not dataset.skip_bad_samples:
                raise
            skipped.append(str(error))
    if not items:
        return None, [], skipped
    images, targets = zip(*items)
    return nested_tensor_from_arrays(images), list(targets), skipped


def ring_size(batch_size, max_size):
    """Return the size of a worker's ring buffer in bytes: twice the largest batch.

    An array that would cross the ring's end is moved to its beginning. Jittor rounds the size up to
    a power of two and touches every page at start-up.
    """
    bytes_per_pixel = 3 * 4 + 1  # three float32 channels and a bool of the mask
    targets = 2**20
    return 2 * (batch_size * max_size**2 * bytes_per_pixel + targets)


class Message(NamedTuple):
    """The metadata that a worker sends along with a batch's arrays.

    Jittor's ring buffer pickles unknown types, so this is sent as one pickle. The ring's own
    encoding loses 0-d arrays and large integers, and can get out of sync at an empty array.
    """

    number: int
    targets: Optional[list] = None
    skipped: tuple = ()
    input_error: Optional[str] = None
    traceback: Optional[str] = None


class BatchWorkers(jt.dataset.Dataset):
    """Jittor's data workers for one pass; item `number` is batch `number` of `order`.

    Only the worker side of Jittor's class is used. Its receiver returns batches in the order in
    which workers announce them, which is not always the order of the batches; it starts the next
    epoch before this one ends; and it blocks in C++, so it notices neither a dead worker nor
    Ctrl-C.
    """

    def __init__(self, dataset, order, num_workers, buffer_size):
        super().__init__(buffer_size=buffer_size, keep_numpy_array=True)
        # Jittor sets self.dataset = self; that reference cycle would keep the ring buffers alive.
        self.dataset = dataset
        self.order = order
        self.num_workers = num_workers
        self.heads = {}  # worker id -> oldest received message that is not consumed yet
        # Read by _init_workers: one Jittor batch is one item, which is one of our batches.
        self.real_len = self.batch_len = len(order.starts)
        self.real_batch_size = 1
        # Return freed memory before forking. gc.freeze() stops the workers' garbage collector from
        # touching existing objects, which would copy their pages.
        return_freed_memory()
        gc.freeze()
        with block_signals_in_children():
            self._init_workers(np.arange(len(order.starts)))
        gc.unfreeze()
        # Kill the workers unconditionally, also at exit, because Python would wait forever for
        # children that ignore SIGTERM.
        self.close = Finalize(self, kill, [self.workers], exitpriority=1)

    def __getitem__(self, number):
        """Load a batch, in the worker.

        Return errors as messages; if raised, Jittor would interrupt the main process.
        """
        die_with_parent()
        number = int(number)
        try:
            samples, targets, skipped = load_batch(self.dataset, self.order.batch(number))
        except InputError as error:
            return [Message(number, input_error=str(error))]
        except Exception:
            return [Message(number, traceback=traceback.format_exc())]
        if samples is None:
            return [Message(number, targets, skipped)]
        values = [value for target in targets for value in target.values()]
        arrays = [samples.tensors, samples.mask, *values]
        size = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
        if 2 * size > self.buffer_size:
            return [Message(number)]  # does not fit into the ring: the main process loads it
        return [Message(number, targets, skipped), samples.tensors, samples.mask]

    def collate_batch(self, batch):
        return batch[0]

    def receive(self, number):
        """Wait for batch `number`, in the main process, and return what `load_batch` returned.

        Each worker sends its batches in rising order, so the requested one is a worker's oldest.
        """
        while True:
            while self.idqueue.total_push() > self.idqueue.total_pop():
                # drain the unused announcements; workers would block on a full queue
                self.idqueue.pop()
            for worker_id, worker in enumerate(self.workers):
                has_sent = worker.buffer.total_push() > worker.buffer.total_pop()
                if has_sent and worker_id not in self.heads:
                    self.heads[worker_id] = worker.buffer.recv()
                if worker_id in self.heads and self.heads[worker_id][0].number == number:
                    return self._open(*self.heads.pop(worker_id))
            self._check_alive()
            time.sleep(0.001)

    def _open(self, message, tensors=None, mask=None):
        if message.input_error is not None:
            raise InputError(message.input_error)
        if message.traceback is not None:
            raise RuntimeError(
                f"a data worker failed at batch {message.number}:\n{message.traceback}"
            )
        if message.targets is None:
            return load_batch(self.dataset, self.order.batch(message.number))
        samples = NestedTensor(tensors, mask) if message.targets else None
        return samples, message.targets, message.skipped

    def _check_alive(self):
        for worker in self.workers:
            if not worker.p.is_alive():
                raise InputError(
                    f"a data worker (process {worker.p.pid}) died with exit code "
                    f"{worker.p.exitcode}; if memory ran out, use fewer --num_workers or a smaller "
                    "--batch_size"
                )


def kill(workers):
    for worker in workers:
        worker.p.kill()
    for worker in workers:
        worker.p.join()
