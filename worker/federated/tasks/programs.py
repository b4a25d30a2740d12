"""Runs the tiny arithmetic programs that models write, without ever executing Python.

The text is parsed with `ast` and walked by hand: numbers, names, `+ - * / // % **`, assignments
and `print`. Everything else is refused, and source, size of numbers and exponents are bounded, so
that no answer of a model can harm or stall the machine that scores it.
"""

import ast
import operator
import warnings
from collections.abc import Callable

Number = int | float

MAX_SOURCE_CHARACTERS = 2_000
MAX_NODES = 400
MAX_MAGNITUDE = 1e30
MAX_EXPONENT = 64

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class ProgramError(ValueError):
    """The text is no program of the small language, or has no value; says why."""


def run_program(source: str) -> Number:
    r"""Value of the last `answer = ...`, `print(...)` or bare expression of a program.

    Args:
        source: for example `n0 = 12\nanswer = n0 - 5\nprint(answer)`.

    Raises:
        ProgramError: the text cannot be parsed, uses anything but arithmetic, exceeds a limit,
            divides by zero, or gives no value.
    """
    names: dict[str, Number] = {}
    value: Number | None = None
    for statement in _parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=expression):
                names[name] = _evaluate(expression, names)
                value = names[name] if name == "answer" else value
            case ast.Expr(
                value=ast.Call(func=ast.Name(id="print"), args=[expression], keywords=[])
            ):
                value = _evaluate(expression, names)
            case ast.Expr(value=expression):
                value = _evaluate(expression, names)
            case _:
                raise ProgramError(f"{type(statement).__name__} is not allowed in a program")
    if value is None:
        raise ProgramError("the program neither sets `answer` nor prints a value")
    return value


def _parse(source: str) -> ast.Module:
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise ProgramError(f"the program is longer than {MAX_SOURCE_CHARACTERS} characters")
    try:
        # A model's text may hold oddities that Python warns about; they are not our caller's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"the program cannot be parsed: {error}") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ProgramError(f"the program has more than {MAX_NODES} parts")
    return tree


def _evaluate(node: ast.expr, names: dict[str, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name):
            if name not in names:
                raise ProgramError(f"the name {name!r} has no value")
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _evaluate(operand, names)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_evaluate(left, names), _evaluate(right, names))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _combine(_BINARY[type(op)], _evaluate(left, names), _evaluate(right, names))
        case _:
            raise ProgramError(f"{type(node).__name__} is not allowed in a program")


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > MAX_EXPONENT:
        raise ProgramError(f"the exponent {exponent} is beyond {MAX_EXPONENT}")
    if base < 0 and exponent != int(exponent):
        raise ProgramError("a broken power of a negative number is not real")
    return _combine(operator.pow, base, exponent)


def _combine(function: Callable[[Number, Number], Number], left: Number, right: Number) -> Number:
    try:
        return _bounded(function(left, right))
    except (ZeroDivisionError, OverflowError) as error:
        raise ProgramError(f"the program has no value: {error}") from error


def _bounded(value: Number) -> Number:
    # Written so that a NaN is refused as well.
    if not abs(value) <= MAX_MAGNITUDE:
        raise ProgramError(f"a number of the program is beyond {MAX_MAGNITUDE:.0e}")
    return value
