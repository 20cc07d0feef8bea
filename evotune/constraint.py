"""Rules between parameters, written as Python expressions: ``"BLOCK_M * BLOCK_N <= 1024"``.

The same text is code here, a line in a model's prompt, and an error message. It is parsed against an
allow-list of operations, never handed to ``eval``, because recorded spaces come from other people.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from evotune.errors import UsageError

Array = npt.NDArray[Any]


def _counted(value: Any) -> Any:
    """Booleans as 0 and 1, which they are in Python's sums and not in NumPy's."""
    return value * 1 if getattr(value, "dtype", None) == np.bool_ else value


def _negative(value: Any) -> Any:
    return -_counted(value)


def _magnitude(value: Any) -> Any:
    return abs(_counted(value))


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(_counted(a), _counted(b))


def _power(a: Any, b: Any) -> Any:
    """With a fraction for a negative exponent, which NumPy refuses to integers."""
    base: Any = np.asarray(a, dtype=float) if np.any(np.asarray(b) < 0) else a
    return base**b


_BINARY: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _arithmetic(operator.mul),
    ast.Div: np.true_divide,
    ast.FloorDiv: _arithmetic(np.floor_divide),
    ast.Mod: _arithmetic(np.remainder),
    ast.Pow: _arithmetic(_power),
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


def _both(a: Any, b: Any) -> Any:
    return np.logical_and(a, b)


def _is_in(value: Any, among: Sequence[Any]) -> Any:
    return reduce(np.logical_or, [value == v for v in among], False)


_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: np.logical_not,
    ast.USub: _negative,
    ast.UAdd: _counted,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: _is_in,
    ast.NotIn: lambda value, among: np.logical_not(_is_in(value, among)),
}
_CHOOSE: Callable[[Any, Any, Any], Any] = np.where
_CALLS: dict[str, Callable[..., Any]] = {
    "min": lambda *a: reduce(np.minimum, a),
    "max": lambda *a: reduce(np.maximum, a),
    "abs": _magnitude,
}
ALLOWED = f"comparisons, and/or/not, arithmetic, in with a list, if-else and {sorted(_CALLS)}"


class Constraint:
    """One parsed constraint; evaluates scalars and whole columns with the same code."""

    def __init__(self, text: str, known: Sequence[str], constants: Mapping[str, object]) -> None:
        self.text = text
        self._constants = constants
        try:
            self.tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise UsageError(f"constraint {text!r} is not a Python expression: {error.msg}") from None
        called = {
            n.func.id for n in ast.walk(self.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        names = {n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)} - (called & set(_CALLS))
        if unknown := sorted(names - set(known)):
            raise UsageError(f"constraint {text!r} names unknown parameters {unknown}; known: {list(known)}")
        self.names = names - set(constants)
        lists = {id(side) for n in ast.walk(self.tree) if isinstance(n, ast.Compare) for side in _lists(n)}
        for node in ast.walk(self.tree):
            is_stray = isinstance(node, (ast.List, ast.Tuple)) and id(node) not in lists
            if wrong := "a list that follows no in" if is_stray else _wrong(node):
                raise UsageError(f"constraint {text!r} uses {wrong}; allowed are {ALLOWED}")

    def holds(self, config: Mapping[str, object]) -> bool:
        return bool(self.holds_all(config, 1)[0])

    def holds_all(self, columns: Mapping[str, Any], n: int) -> Array:
        """Truth of the constraint along columns of values, (n,) of bool.

        Raises:
            UsageError: It cannot be computed of such values.
        """
        # Both sides of an `or` are computed, so `x == 0 or n % x == 0` divides by zero harmlessly.
        try:
            with np.errstate(all="ignore"):
                result = evaluate(self.tree, {**self._constants, **columns})
        except (TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(
                f"constraint {self.text!r} cannot be computed: {error}; calculate with numbers, and compare text "
                "by ==, != and in"
            ) from None
        return np.broadcast_to(np.asarray(result, dtype=bool), (n,))


def _lists(compare: ast.Compare) -> list[ast.expr]:
    """The sides of a comparison that are where a list must be: last, after ``in``."""
    is_membership = isinstance(compare.ops[-1], (ast.In, ast.NotIn))
    return [compare.comparators[-1]] if is_membership else []


def _wrong(node: ast.AST) -> str | None:
    """What a node is that is not allowed, in words; None of one that is."""
    match node:
        case ast.Call(func=ast.Name(id=called), args=args, keywords=[]) if called in _CALLS:
            if called == "abs":
                return None if len(args) == 1 else f"abs of {len(args)} values, which takes one"
            return None if len(args) > 1 else f"{called} of {len(args)} values, which takes two or more"
        case ast.BinOp(op=op):
            return None if type(op) in _BINARY else type(op).__name__
        case ast.UnaryOp(op=op):
            return None if type(op) in _UNARY else type(op).__name__
        case ast.Constant(value=value):
            return None if isinstance(value, (bool, int, float, str)) else repr(value)
        case ast.Compare(ops=ops):
            for op, side in zip(ops, node.comparators, strict=True):
                if type(op) not in _COMPARE:
                    return type(op).__name__
                if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(side, (ast.List, ast.Tuple)):
                    return f"in {ast.unparse(side)}, which is no list such as [1, 2]"
            return None
        case ast.BoolOp() | ast.Name() | ast.IfExp() | ast.Tuple() | ast.List():
            return None
        case ast.operator() | ast.unaryop() | ast.boolop() | ast.cmpop() | ast.expr_context():
            return None
        case _:
            return type(node).__name__


def evaluate(node: ast.expr, env: Mapping[str, Any]) -> Any:
    """The value of an allowed expression; names may stand for scalars or for columns."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return env[name]
        case ast.BoolOp(op=op, values=values):
            join = np.logical_and if isinstance(op, ast.And) else np.logical_or
            return reduce(join, [evaluate(v, env) for v in values])
        case ast.UnaryOp(op=op, operand=operand):
            return _UNARY[type(op)](evaluate(operand, env))
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](evaluate(left, env), evaluate(right, env))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [evaluate(left, env), *[evaluate(c, env) for c in comparators]]
            found: list[Any] = [_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False)]
            return reduce(_both, found)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            sides = [evaluate(test, env), evaluate(body, env), evaluate(orelse, env)]
            return _CHOOSE(*sides)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _CALLS[name](*[evaluate(a, env) for a in args])
        case ast.Tuple(elts=elts) | ast.List(elts=elts):
            return [evaluate(e, env) for e in elts]
        case _:
            raise AssertionError(f"unchecked node {type(node).__name__}")
