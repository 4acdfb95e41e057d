"""Calls functions of a program and writes what they return as text: runs in the sandbox, where it is sent as a program.

Values travel as JSON, in which all but None, bool, str and small int is a list that starts with its kind. Nothing that
comes from inside is ever unpickled or evaluated. Outside, this module is imported for `encode` and `decode`.
"""

import faulthandler
import json
import math
import os
import sys
import time
import types
from typing import Any

Node = Any  # None, bool, str, int, or [kind, ...]

_SMALL = 1 << 63
_COLLECTIONS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
CONTAINERS = ("dict", *_COLLECTIONS)


def encode(value: Any) -> Node:
    """A value as JSON. An instance of a subclass is what it inherits from: an int whose `==` always holds is an int.

    What is no plain value (a generator, a class of the program's own) is ["object", its type], equal to nothing.

    Raises:
        RecursionError: it is nested too deep, or contains itself.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, int):
        value = int.__index__(value)
        return value if -_SMALL < value < _SMALL else ["int", f"{value:x}"]
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, float):
        return ["float", float.hex(value)]
    if issubclass(kind, complex):
        value = complex.__pos__(value)
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if issubclass(kind, bytes | bytearray):
        return ["bytes", kind.hex(value)]
    if issubclass(kind, dict):
        return ["dict", *(encode(part) for item in dict.items(value) for part in item)]
    for name, base in _COLLECTIONS.items():
        if issubclass(kind, base):
            return [name, *map(encode, base.__iter__(value))]
    return ["object", str(kind.__name__)]


def decode(node: Node) -> Any:
    """The value of a node.

    Raises:
        ValueError, TypeError, RecursionError: it is none that `encode` gives, or an "object" or an "error".
    """
    if node is None or isinstance(node, bool | int | str):
        return node
    if not isinstance(node, list):
        raise TypeError(f"no value is sent as {type(node).__name__}")
    kind, *parts = node
    if kind == "int":
        return int(str(*parts), 16)
    if kind == "float":
        return float.fromhex(*parts)
    if kind == "complex":
        return complex(*map(float.fromhex, parts))
    if kind == "bytes":
        return bytes.fromhex(*parts)
    if kind == "dict":
        values = [decode(part) for part in parts]
        return dict(zip(values[::2], values[1::2], strict=True))
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](map(decode, parts))
    raise ValueError(f"no value of kind {kind!r}")


def main() -> None:
    """Read a request from stdin, and write one line for the program, when it is there, and one for each call.

    The lines go to a copy of stdout that the program is not told of. It can find it: what it writes there is taken for
    what its functions return, so that it gains no more than by returning it.
    """
    with open(0, "rb", closefd=False) as stdin:
        request = json.loads(stdin.read())
    channel, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for used in (0, 1, 2):
        os.dup2(nothing, used)

    def write(node: Node) -> None:
        line = json.dumps(node).encode() + b"\n"
        while line:
            line = line[os.write(channel, line) :]

    armed = -math.inf

    def limit_time() -> None:
        """Let the process end when the next step takes too long, by at most a tenth: to arm it takes a while."""
        nonlocal armed
        if time.monotonic() - armed > 0.1 * request["seconds"]:
            armed = time.monotonic()
            faulthandler.dump_traceback_later(1.1 * request["seconds"], exit=True, file=nothing)

    limit_time()
    solution = types.ModuleType("solution")
    sys.modules["solution"] = solution
    exec(compile(request["code"], "solution.py", "exec"), solution.__dict__)
    names = dict(solution.__dict__)
    exec(request["imports"], names)
    write("ready")
    for call in request["calls"]:
        limit_time()
        try:
            if "args" in call:
                function = eval(call["call"], names)
                value = function(*decode(call["args"]), **decode(call["kwargs"]))
            else:
                value = eval(call["call"], names)
            node = encode(value)
        except BaseException as error:
            node = ["error", type(error).__name__]
        write(node)
    os._exit(0)  # whatever threads the program has left


if __name__ == "__main__":
    main()
