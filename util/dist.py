"""Which process this is, under MPI or alone."""
import jittor as jt


def get_rank():
    return jt.rank


def is_main_process():
    return get_rank() == 0
