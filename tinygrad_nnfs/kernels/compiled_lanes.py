"""Sixteen float32 numbers at once, as a type for compiled kernels.

A compiler turns a loop over channels into vector instructions only where it can prove that what is
written is not what is read, which it seldom can. Here the kernel says so itself: `load` sixteen
numbers that lie side by side, add and multiply them like one, `store` them. On a processor with
AVX-512 that is one register; on others the compiler takes several.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from tinygrad_nnfs.kernels.loops import LANES


class LanesType(types.Type):
    def __init__(self):
        super().__init__(name=f"{LANES} x float32")


lanes = LanesType()
VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INT = ir.IntType(32)


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VECTOR)


def address_of(context, builder, array_type, array, offset):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), VECTOR.as_pointer())


def spread(builder, number):
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, _INT(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, LANES), None))


@intrinsic
def load(typingctx, array, offset):
    """The lanes at array[offset], ... of a flat float32 array."""

    def build(context, builder, signature, args):
        return builder.load(address_of(context, builder, signature.args[0], *args), align=4)

    return lanes(array, types.intp), build


@intrinsic
def load_one(typingctx, array, offset):
    """The number at array[offset] of a flat float32 array, in all lanes."""

    def build(context, builder, signature, args):
        array, offset = args
        data = context.make_array(signature.args[0])(context, builder, array).data
        return spread(builder, builder.load(builder.gep(data, [offset])))

    return lanes(array, types.intp), build


@intrinsic
def store(typingctx, value, array, offset):
    """The lanes to array[offset], ... of a flat float32 array."""

    def build(context, builder, signature, args):
        value, array, offset = args
        address = address_of(context, builder, signature.args[1], array, offset)
        builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp), build


@intrinsic(prefer_literal=True)
def load_row(typingctx, array, offset, step, count):
    """The `count` lanes at array[offset], array[offset + step], ..., as a tuple."""
    row = types.UniTuple(lanes, count.literal_value)

    def build(context, builder, signature, args):
        array, offset, step, _ = args
        values = []
        for _ in range(len(row)):
            address = address_of(context, builder, signature.args[0], array, offset)
            values.append(builder.load(address, align=4))
            offset = builder.add(offset, step)
        return context.make_tuple(builder, row, values)

    return row(array, types.intp, types.intp, count), build


@intrinsic
def store_row(typingctx, values, array, offset, step):
    """A tuple of lanes to array[offset], array[offset + step], ..."""

    def build(context, builder, signature, args):
        values, array, offset, step = args
        for value in cgutils.unpack_tuple(builder, values):
            address = address_of(context, builder, signature.args[1], array, offset)
            builder.store(value, address, align=4)
            offset = builder.add(offset, step)
        return context.get_dummy_value()

    return types.void(values, array, types.intp, types.intp), build


@intrinsic
def fill(typingctx, number):
    """One float32 in all lanes."""

    def build(context, builder, signature, args):
        return spread(builder, *args)

    return lanes(types.float32), build


def _arithmetic(operation, instruction):
    @intrinsic
    def compute(typingctx, a, b):
        def build(context, builder, signature, args):
            return getattr(builder, instruction)(*args, flags=("contract",))

        return lanes(lanes, lanes), build

    @overload(operation, inline="always")
    def _(a, b):
        if a == lanes and b == lanes:
            return lambda a, b: compute(a, b)
        if a == types.float32 and b == lanes:
            return lambda a, b: compute(fill(a), b)
        return None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
