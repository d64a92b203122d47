"""Keep memory constant over batches of varying image sizes."""

from util.backend import jt
from util.memory import return_freed_memory


class StepMemory:
    """Keep memory constant over batches of many sizes; call `tidy` after each batch.

    Jittor's allocator fragments: it keeps freed memory in the blocks into which one batch split it,
    and allocates more for every new size. On the CPU, free cached blocks once Jittor holds more
    than a batch that started with an empty cache needed; and every BATCHES_BETWEEN_TRIMS batches
    return memory to the system, so that a single large batch does not inflate the process for days.

    With CUDA, freeing waits for the device. Free only once Jittor holds most of the GPU's memory,
    and between batches, when no blocks in use keep larger ones from being freed.
    """

    BATCHES_BETWEEN_TRIMS = 50
    MAX_GPU_FRACTION = 0.9

    def __init__(self):
        self.batches = 0
        self.need = 0  # bytes held after a batch that started without freed blocks
        self.was_freed = True

    def tidy(self):
        if jt.flags.use_cuda:
            memory = jt.get_mem_info()
            if memory.total_cuda_used > self.MAX_GPU_FRACTION * memory.total_cuda_ram:
                jt.gc()
            return
        jt.sync_all()
        held = jt.get_mem_info().total_cpu_used
        if self.batches % self.BATCHES_BETWEEN_TRIMS == 0:
            jt.gc()
            return_freed_memory()
            self.need = 0
            self.was_freed = True
        elif self.was_freed:
            self.need = max(self.need, held)
            self.was_freed = False
        elif held > self.need:
            jt.gc()
            self.was_freed = True
        self.batches += 1
