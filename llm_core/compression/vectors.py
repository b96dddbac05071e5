"""What plain numba lacks: sixteen numbers at once, and a counter that threads share.

numba compiles a loop over single numbers, and LLVM makes vectors of it where it can. With 4-bit codes, two to a byte,
it cannot do that well: the same loop over `Floats`, sixteen float32 numbers side by side, is several times as quick.
One operation on sixteen numbers is one instruction with AVX-512, two with AVX2, four on ARM; LLVM sees to that.

    read(x, i)        x[i] ... x[i + 15]                    spread(x, i)      sixteen times x[i]
    low(codes, i)     the low four bits of sixteen bytes    high(codes, i)    the high four bits
    whole(codes, i)   sixteen signed bytes                  total(v)          the sum of the sixteen
    a + b, a * b      number by number

They read an array as one long row, whatever its shape, and do not look whether they read beyond its end.

`meet(counter, goal)` is how threads wait for each other: each adds one to the counter, and goes on when the goal is
reached. It asks for this file to be imported where numba is installed.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
_FLOAT, _INT64 = ir.FloatType(), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_FAST = ("fast",)  # sums may be taken in any order, and a product and a sum be rounded once

# What one thread looks at the counter before it lets another one have its core: some microseconds.
_PATIENCE = 4000


class Floats(types.Type):
    """The type of sixteen float32 numbers, for numba."""

    def __init__(self) -> None:
        super().__init__(name="Floats")


_floats = Floats()


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _FLOATS)


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [at], source_etype=context.get_data_type(array_type.dtype))


def _load(context: Any, builder: Any, what: Any, array_type: Any, array: Any, at: Any) -> Any:
    place = builder.bitcast(_place(context, builder, array_type, array, at), what.as_pointer())
    return builder.load(place, align=1, typ=what)


def _reader(make: Callable[[Any, Any], Any], stored: Any) -> Any:
    """An intrinsic (array, at) -> Floats: what is stored there, made numbers."""

    @intrinsic
    def reader(_: Any, array: Any, at: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return make(builder, _load(context, builder, stored, signature.args[0], *arguments))

        return _floats(array, types.intp), build

    return reader


def _of_bytes(number: int) -> Any:
    return ir.Constant(_BYTES, [number] * LANES)


read = _reader(lambda builder, found: found, _FLOATS)
whole = _reader(lambda builder, found: builder.sitofp(found, _FLOATS), _BYTES)
low = _reader(lambda builder, found: builder.uitofp(builder.and_(found, _of_bytes(15)), _FLOATS), _BYTES)
high = _reader(lambda builder, found: builder.uitofp(builder.lshr(found, _of_bytes(4)), _FLOATS), _BYTES)


def _sixteen_times(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


spread = _reader(_sixteen_times, _FLOAT)


@intrinsic
def zeros(_: Any) -> Any:
    """Sixteen zeros."""
    return _floats(), lambda context, builder, signature, arguments: ir.Constant(_FLOATS, [0.0] * LANES)


@intrinsic
def write(_: Any, array: Any, at: Any, numbers: Any) -> Any:
    """Put sixteen numbers into an array, from `at` on."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(place, _FLOATS.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, _floats), build


@intrinsic
def total(_: Any, numbers: Any) -> Any:
    """The sum of the sixteen."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _FLOATS])
        add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(add_up, [_FLOAT(0.0), arguments[0]], fastmath=_FAST)

    return types.float32(_floats), build


def _operation(name: str) -> Any:
    @intrinsic
    def operation(_: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=_FAST)

        return _floats(_floats, _floats), build

    return operation


_add, _multiply = _operation("fadd"), _operation("fmul")


@overload(operator.add, inline="always", strict=False)
def _overload_add(a: Any, b: Any) -> Any:
    return (lambda a, b: _add(a, b)) if isinstance(a, Floats) and isinstance(b, Floats) else None


@overload(operator.mul, inline="always", strict=False)
def _overload_multiply(a: Any, b: Any) -> Any:
    return (lambda a, b: _multiply(a, b)) if isinstance(a, Floats) and isinstance(b, Floats) else None


@intrinsic
def _count(_: Any, counter: Any) -> Any:
    """Add one to counter[0], as no other thread can at the same moment."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], arguments[0], _INT64(0))
        return builder.atomic_rmw("add", place, _INT64(1), "seq_cst")

    return types.int64(counter), build


@intrinsic
def _counted(_: Any, counter: Any) -> Any:
    """counter[0] as it is now, and with it all that other threads wrote before they added to it."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], arguments[0], _INT64(0))
        return builder.load_atomic(place, "acquire", align=8, typ=_INT64)

    return types.int64(counter), build


@intrinsic
def _let_others_run(_: Any) -> Any:
    """Ask the system whether another thread wants this core."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), build


@njit(nogil=True)
def meet(counter: Any, goal: int) -> int:
    """Add one to the counter, an array of one int64, and wait until it stands at the goal; returns the goal."""
    _count(counter)  # type: ignore[call-arg]
    looks = 0
    while _counted(counter) < goal:
        looks += 1
        if looks % _PATIENCE == 0:
            _let_others_run()
    return goal
