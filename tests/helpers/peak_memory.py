"""Peak memory of NumPy arrays and Python objects."""

import tracemalloc


def measure_peak(call):
    """Return the result of `call()` and the most memory allocated meanwhile, MB."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
