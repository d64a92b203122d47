"""Read pickles without executing code, in time and memory bounded by their size.

Restricting Python's unpickler (`find_class`) is not enough: ten bytes can make its memo allocate 64
GB, keys of shared tuples take exponential time to hash, nested tuples overflow the stack, and
NumPy's classes trust their arguments. So interpret the few opcodes that checkpoints need, as
PyTorch does for `weights_only`.
"""

import pickletools

from util.errors import InputError

MAX_OPCODES = 1_000_000  # DETR-R101 with its optimizer has 35 thousand
_MAX_INT = 2**128  # the magic number of PyTorch's legacy files has 77 bits
_SCALARS = (str, bytes, int, float, bool, type(None))
_VALUES = """
    BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING
    SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
""".split()
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Pending:
    """An object that a pickle makes by a call and then by `build`, whose result replaces it."""

    def __init__(self):
        self.memo_keys = []

    def build(self, state):
        raise NotImplementedError


def check_keys(items):
    """Return items if all are scalars, which hash in constant time; else raise ValueError."""
    for item in items:
        if type(item) not in _SCALARS:
            raise ValueError(f"a {type(item).__name__} cannot be a key of a dictionary or in a set")
    return items


class OrderedDict(dict):
    """Stands in for `collections.OrderedDict`; ignores attributes (a state dict's `_metadata`)."""

    memo_keys = ()

    def __init__(self, items=()):
        super().__init__(zip(check_keys([key for key, _ in items]), [value for _, value in items]))

    def build(self, state):
        return self


def load(file, path, names, persistent=None):
    """Load the pickle at a binary file's current position and advance past it.

    names: {(module, name): replacement}; callables may be invoked by the pickle. persistent:
    function that resolves a persistent id. Raises InputError with path for any other name, and
    ValueError or another exception if the pickle is damaged.
    """
    stack, outer_stacks, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if count > MAX_OPCODES:
            raise ValueError(f"more than {MAX_OPCODES:,} opcodes")
        if name in _VALUES:
            if isinstance(argument, int) and abs(argument) > _MAX_INT:
                raise ValueError("an integer has more than 128 bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            key = len(memo) if name == "MEMOIZE" else argument
            memo[key] = stack[-1]
            if isinstance(stack[-1], Pending):
                stack[-1].memo_keys.append(key)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            outer_stacks.append(stack)
            stack = []
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name] :])
            if len(items) != _TUPLES[name]:
                raise ValueError("a tuple has too few items")
            stack[-len(items) :] = [items]
        elif name == "TUPLE":
            stack, items = outer_stacks.pop(), tuple(stack)
            stack.append(items)
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            stack, items = outer_stacks.pop(), stack
            _extend(stack[-1], name, items)
        elif name in ("APPEND", "SETITEM"):
            size = 1 if name == "APPEND" else 2
            items = stack[-size:]
            del stack[-size:]
            _extend(stack[-1], f"{name}S", items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "GLOBAL":
                words = tuple(argument.split(" ", 1))
            else:
                words = stack.pop(-2), stack.pop()
            check_keys(words)
            if words not in names:
                raise InputError(
                    f"{path}: refused, because the file names {'.'.join(map(str, words))[:120]}, "
                    "which weights do not need; save only its state dict, with arrays and plain "
                    "containers"
                )
            stack.append(names[words])
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            if not callable(stack[-1]) or type(arguments) is not tuple:
                raise ValueError("REDUCE of an object that is not callable")
            stack[-1] = stack[-1](*arguments)
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], (Pending, OrderedDict)):
                raise ValueError("BUILD of an unsupported object")
            pending, stack[-1] = stack[-1], stack[-1].build(state)
            for key in pending.memo_keys:
                memo[key] = stack[-1]
        elif name == "BINPERSID" and persistent:
            stack[-1] = persistent(stack[-1])
        elif name == "STOP":
            if len(stack) != 1 or outer_stacks:
                raise ValueError("STOP before the end")
            return stack[0]
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"unsupported opcode {name}")
    raise ValueError("STOP is missing")


def _extend(container, name, items):
    kind = {"APPENDS": list, "SETITEMS": dict, "ADDITEMS": set}[name]
    if not isinstance(container, kind):
        raise ValueError(f"{name} on a {type(container).__name__} instead of a {kind.__name__}")
    if kind is list:
        container.extend(items)
    elif kind is set:
        container.update(check_keys(items))
    elif len(items) % 2:
        raise ValueError("a key without a value")
    else:
        container.update(zip(check_keys(items[::2]), items[1::2]))
