"""The tests of a program: their formats, and whether what came out of the program passes them.

What is expected is known here and never inside the sandbox with the program.
"""

import ast
import builtins
import json
import math
import operator
import re
import warnings
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from trl_ext.rewards.code_driver import CONTAINERS, Node, decode, encode

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*(\(\))?)*")  # add, Solution().add
_BUILTINS = frozenset(dir(builtins))
_INPUT, _OUTPUT = ("stdin", "input", "inputs"), ("stdout", "output", "outputs")
_OPERATORS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, expected: value in expected,
    ast.NotIn: lambda value, expected: value not in expected,
    ast.Is: lambda value, expected: type(value) is type(expected) and value == expected,
    ast.IsNot: lambda value, expected: type(value) is not type(expected) or value != expected,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    **{kind: kind for kind in (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)},
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}  # fmt: skip


@dataclass(frozen=True)
class InputOutput:
    """A run of the whole program on some input."""

    stdin: str
    stdout: str

    def passes(self, stdout: bytes) -> bool:
        """Equal line by line; whitespace around a line and around the whole does not count."""
        return _lines(stdout.decode("utf-8", "replace")) == _lines(self.stdout)


@dataclass(frozen=True)
class Unknown:
    """An expected value that is no literal: `set([1])`, `math.pi`. A sandbox without the program finds it out."""

    source: str


@dataclass(frozen=True)
class Call:
    """A call of a function of the program: `call` is for the driver, and its value passes if `compare` says so.

    Without `compare` its truth value is what is expected.
    """

    call: dict[str, Any]
    compare: Callable[[Any, Any], Any] | None
    expected: Any
    as_json: bool = False

    def passes(self, node: Node) -> bool:
        """Whether the value of a node passes, in time that grows with what is expected and not with what came."""
        try:
            if self.compare is None:
                return _truth(node) is self.expected
            expected = encode(self.expected)
            if self.as_json:
                node, expected = _as_json(node), _as_json(expected)
            if _size(node) > _size(expected) + 1000:  # a hostile set or dict takes the square of its size to build
                return False
            return bool(self.compare(decode(node), decode(expected)))
        except Exception:  # no plain value, or none that compares with that
            return False


@dataclass
class Tests:
    """All tests of a program, and the imports that they need."""

    inputs: list[InputOutput] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    imported: set[str] = field(default_factory=set)


def parse_tests(target: Any) -> Tests | None:
    """The tests that a target holds, in any of the formats; None where there is none, or one of them cannot be used."""
    tests = Tests()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser
            _add(tests, target)
    except (ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError):
        return None
    return tests if tests.inputs or tests.calls else None


def _add(tests: Tests, target: Any) -> None:
    if isinstance(target, str):
        if target.lstrip().startswith(("[", "{")):
            _add(tests, json.loads(target))
        else:
            _add_asserts(tests, target)
    elif isinstance(target, dict):
        _add_case(tests, target)
    elif isinstance(target, list | tuple):
        for part in target:
            _add(tests, part)
    else:
        raise TypeError


def _add_case(tests: Tests, case: dict[str, Any]) -> None:
    given = {key: value for key, value in case.items() if value is not None}  # Arrow fills up with None
    if "call" in given:
        if not given.keys() <= {"call", "args", "kwargs", "expected"} or "expected" not in case:
            raise ValueError
        args, kwargs = given.get("args", []), given.get("kwargs", {})
        if not (isinstance(args, list | tuple) and isinstance(kwargs, dict) and _FUNCTION.fullmatch(given["call"])):
            raise ValueError
        call = {"call": given["call"], "args": _plain(list(args)), "kwargs": _plain(kwargs)}
        _plain(case["expected"])
        tests.calls.append(Call(call, operator.eq, case["expected"], as_json=True))
        return
    names = [[key for key in given if key in names] for names in (_INPUT, _OUTPUT)]
    if len(names[0]) != 1 or len(names[1]) != 1 or len(given) != 2:
        raise ValueError
    inputs, outputs = (given[key] if isinstance(given[key], list | tuple) else [given[key]] for (key,) in names)
    if not all(isinstance(text, str) for text in (*inputs, *outputs)):
        raise TypeError
    tests.inputs += [InputOutput(*pair) for pair in zip(inputs, outputs, strict=True)]


def _add_asserts(tests: Tests, text: str) -> None:
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            tests.imports.append(ast.unparse(statement))
            tests.imported |= {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assert):
            test, assertion = statement.test, _Assertion(_BUILTINS | tests.imported)
            both = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
            tests.calls += map(assertion.split, both)
        else:
            raise ValueError


class _Assertion:
    """Splits what is asserted into a call, which goes inside, and what is expected of it, which does not.

    A name that is neither built in nor imported (`known`) is the program's.
    """

    def __init__(self, known: Set[str]):
        self.known = known

    def split(self, test: ast.expr) -> Call:
        if isinstance(test, ast.Compare):
            return self._comparison(test)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return self._truth(test.operand, False)
        if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose"):
            (left, right), tolerances = (
                test.args,
                {str(word.arg): ast.literal_eval(word.value) for word in test.keywords},
            )
            return self._close(left, right, lambda value, expected: math.isclose(value, expected, **tolerances))
        return self._truth(test, True)

    def _comparison(self, test: ast.Compare) -> Call:
        if len(test.ops) != 1:
            raise ValueError
        left, right, kind = test.left, test.comparators[0], type(test.ops[0])
        if self._is_programs(right):
            left, right, kind = right, left, _MIRRORED[kind]
        compare = _OPERATORS[kind]
        if kind in (ast.Lt, ast.LtE) and isinstance(left, ast.Call) and ast.unparse(left.func) == "abs":
            (difference,) = left.args
            if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
                bound = ast.literal_eval(right)
                return self._close(
                    difference.left, difference.right, lambda value, expected: compare(abs(value - expected), bound)
                )
        if isinstance(right, ast.Constant) and isinstance(right.value, bool):
            self._refuse_guess(left)
        elif kind in (ast.Is, ast.IsNot) and ast.unparse(right) != "None":
            raise ValueError
        return Call(self._call(left), compare, self._expected(right))

    def _close(self, left: ast.expr, right: ast.expr, compare: Callable[[Any, Any], Any]) -> Call:
        if self._is_programs(right):
            left, right = right, left
        return Call(self._call(left), compare, self._expected(right))

    def _truth(self, test: ast.expr, expected: bool) -> Call:
        self._refuse_guess(test)
        return Call(self._call(test), None, expected)

    def _refuse_guess(self, node: ast.expr) -> None:
        """Refuse `isinstance(f(1), int)`: the program can replace `isinstance`, and True is no secret."""
        if not (isinstance(node, ast.Call) and self._is_programs(node.func)):
            raise ValueError

    def _call(self, node: ast.expr) -> dict[str, Any]:
        if not self._is_programs(node):
            raise ValueError
        for part in ast.walk(node):
            # Comparing inside would tell what is expected, and could be tampered with
            compares = isinstance(part, ast.Compare | ast.BoolOp | ast.IfExp) and self._is_programs(part)
            if compares or (isinstance(part, ast.Attribute) and part.attr.startswith("__")):
                raise ValueError
        return {"call": ast.unparse(node)}

    def _expected(self, node: ast.expr) -> Any:
        if self._is_programs(node):
            raise ValueError
        try:
            value = ast.literal_eval(node)
        except ValueError:
            return Unknown(ast.unparse(node))
        _plain(value)
        return value

    def _is_programs(self, node: ast.expr) -> bool:
        parts = list(ast.walk(node))
        bound = {part.arg for part in parts if isinstance(part, ast.arg)}
        bound |= {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
        return any(isinstance(part, ast.Name) and part.id not in self.known | bound for part in parts)


def _plain(value: Any) -> Node:
    node = encode(value)
    decode(node)  # raises where there is anything but plain values in it
    return node


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _truth(node: Node) -> bool:
    return len(node) > 1 if isinstance(node, list) and node[0] in CONTAINERS else bool(decode(node))


def _size(node: Node) -> int:
    """How many values a node holds."""
    waiting, size = [node], 0
    while waiting:
        part = waiting.pop()
        size += 1
        if isinstance(part, list) and part[0] in CONTAINERS:
            waiting += part[1:]
    return size


def _as_json(node: Node) -> Node:
    """The value as JSON can hold it: tuples are lists, keys are text."""
    if not isinstance(node, list) or node[0] not in CONTAINERS:
        return node
    parts = [_as_json(part) for part in node[1:]]
    if node[0] == "dict":
        parts[::2] = [key if isinstance(key, str | list) else json.dumps(key) for key in parts[::2]]
    return ["list" if node[0] == "tuple" else node[0], *parts]
