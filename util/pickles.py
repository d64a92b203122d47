"""Reads pickles without running anything they say, in time and memory that their size bounds.

Python's unpickler can be kept from naming foreign code, but not from the rest: ten bytes make its
memo take 64 GB, shared tuples as a key take for ever to hash, nested ones overflow the stack, and
NumPy's own classes trust what they are told. So the few instructions that checkpoints consist of
are carried out here, as PyTorch does for `weights_only`.
"""

import pickletools

from util.errors import InputError

MAX_INSTRUCTIONS = 1_000_000  # DETR-R101 with its optimizer has 35 thousand
_MAX_INT = 2**128  # the magic number of PyTorch's legacy files has 77 bits
_SCALARS = (str, bytes, int, float, bool, type(None))
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Pending:
    """An object that a pickle makes in two steps: a call, and `build` with a state.

    What `build` returns takes its place.
    """

    def __init__(self):
        self.memo_keys = []

    def build(self, state):
        raise NotImplementedError


def check_keys(items):
    """Raises ValueError unless all items are scalars, which are hashed in a moment."""
    for item in items:
        if type(item) not in _SCALARS:
            raise ValueError(f"a {type(item).__name__} is the key of a dictionary or in a set")
    return items


class OrderedDict(dict):
    """Stands for that of `collections`; attributes (a state dict's `_metadata`) are left out."""

    memo_keys = ()

    def __init__(self, items=()):
        super().__init__(zip(check_keys([key for key, _ in items]), [value for _, value in items]))

    def build(self, state):
        return self


def load(file, path, names, persistent=None):
    """The object in the pickle at file's position (binary), which is left behind its end.

    names: {(module, name): what stands for it}, of which the callable ones can be called;
    persistent: function of a persistent id. Raises InputError, which names path, for a name that is
    not among them, and ValueError and other exceptions for a damaged pickle.
    """
    stack, below, memo = [], [], {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        name = instruction.name
        if count > MAX_INSTRUCTIONS:
            raise ValueError(f"more than {MAX_INSTRUCTIONS:,} instructions")
        if name in _VALUES:
            if isinstance(argument, int) and abs(argument) > _MAX_INT:
                raise ValueError("a number of more than 128 bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}[name]())
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            key = len(memo) if name == "MEMOIZE" else argument
            memo[key] = stack[-1]
            if isinstance(stack[-1], Pending):
                stack[-1].memo_keys.append(key)
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in _TUPLES:
            items = tuple(stack[-_TUPLES[name] :])
            if len(items) != _TUPLES[name]:
                raise ValueError("a tuple lacks items")
            stack[-len(items) :] = [items]
        elif name == "TUPLE":
            stack, items = below.pop(), tuple(stack)
            stack.append(items)
        elif name in ("APPENDS", "SETITEMS", "ADDITEMS"):
            stack, items = below.pop(), stack
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
                    "which weights do not need; save its state dict alone, with arrays and plain "
                    "containers"
                )
            stack.append(names[words])
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            if not callable(stack[-1]) or type(arguments) is not tuple:
                raise ValueError("a call of something that is no function")
            stack[-1] = stack[-1](*arguments)
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], (Pending, OrderedDict)):
                raise ValueError("an object has an unexpected state")
            pending, stack[-1] = stack[-1], stack[-1].build(state)
            for key in pending.memo_keys:
                memo[key] = stack[-1]
        elif name == "BINPERSID" and persistent:
            stack[-1] = persistent(stack[-1])
        elif name == "STOP":
            if len(stack) != 1 or below:
                raise ValueError("it ends in the middle")
            return stack[0]
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"an instruction that weights do not need, {name}")
    raise ValueError("it has no end")


def _extend(container, name, items):
    kind = {"APPENDS": list, "SETITEMS": dict, "ADDITEMS": set}[name]
    if not isinstance(container, kind):
        raise ValueError(f"items for a {type(container).__name__} as if it were a {kind.__name__}")
    if kind is list:
        container.extend(items)
    elif kind is set:
        container.update(check_keys(items))
    elif len(items) % 2:
        raise ValueError("a key without a value")
    else:
        container.update(zip(check_keys(items[::2]), items[1::2]))
