"""Memory that stays flat over training steps of many image sizes."""

from util.backend import jt
from util.memory import return_freed_memory


class StepMemory:
    """Keeps the memory flat over batches of many sizes; `tidy` is to be called after each of them.

    Jittor's allocator keeps freed memory in the pieces into which it was split for one batch, and
    takes more from the C library where none fits: with every size it has seen it holds more. Here,
    when it holds more than a batch needs that starts without such pieces, they go back to the C
    library, which joins them; and every BATCHES_BETWEEN_TRIMS batches to the system, so that one
    large batch does not hold its memory for days.

    With CUDA freeing would wait for the device. There the pieces stay until Jittor holds most of
    the GPU's memory: before the next batch needs more than is left, and not in its middle, where
    pieces that are in use keep whole blocks from being freed.
    """

    BATCHES_BETWEEN_TRIMS = 50
    MAX_SHARE = 0.9  # of the GPU's memory

    def __init__(self):
        self.batches = 0
        self.need = 0
        self.tidied = True

    def tidy(self):
        if jt.flags.use_cuda:
            memory = jt.get_mem_info()
            if memory.total_cuda_used > self.MAX_SHARE * memory.total_cuda_ram:
                jt.gc()
            return
        jt.sync_all()
        held = jt.get_mem_info().total_cpu_used
        if self.batches % self.BATCHES_BETWEEN_TRIMS == 0:
            jt.gc()
            return_freed_memory()
            self.need = 0
            self.tidied = True
        elif self.tidied:
            self.need = max(self.need, held)
            self.tidied = False
        elif held > self.need:
            jt.gc()
            self.tidied = True
        self.batches += 1
