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


_BINARY: dict[type[ast.operator], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.remainder,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


def _both(a: Any, b: Any) -> Any:
    return np.logical_and(a, b)


def _is_in(value: Any, among: Sequence[Any]) -> Any:
    return reduce(np.logical_or, [value == v for v in among], False)


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
    "abs": np.abs,
}


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
        for node in ast.walk(self.tree):
            if not _is_allowed(node):
                raise UsageError(
                    f"constraint {text!r} uses {type(node).__name__}; allowed are comparisons, and/or/not, "
                    f"arithmetic, in, if-else and {sorted(_CALLS)}"
                )

    def holds(self, config: Mapping[str, object]) -> bool:
        return bool(self.holds_all(config, 1)[0])

    def holds_all(self, columns: Mapping[str, Any], n: int) -> Array:
        """Truth of the constraint along columns of values, (n,) of bool."""
        # Both sides of an `or` are computed, so `x == 0 or n % x == 0` divides by zero harmlessly.
        with np.errstate(all="ignore"):
            result = evaluate(self.tree, {**self._constants, **columns})
        return np.broadcast_to(np.asarray(result, dtype=bool), (n,))


def _is_allowed(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _CALLS and not node.keywords
    if isinstance(node, ast.BinOp):
        return type(node.op) in _BINARY
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float, str))
    if isinstance(node, ast.Compare):
        return all(type(op) in _COMPARE for op in node.ops)
    kinds = (ast.BoolOp, ast.UnaryOp, ast.Name, ast.IfExp, ast.Tuple, ast.List)
    marks = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)
    return isinstance(node, (*kinds, *marks))


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
            value = evaluate(operand, env)
            return (
                np.logical_not(value) if isinstance(op, ast.Not) else -value if isinstance(op, ast.USub) else value
            )
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
