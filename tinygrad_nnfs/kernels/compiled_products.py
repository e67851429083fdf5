"""Matrix products with few rows, compiled by numba.

BLAS rearranges both matrices before it multiplies, which takes long where a number is used for a
few dozen rows only. Here they are read where they lie, those of the first matrix one by one, those
of the second LANES at a time, and a block of some rows by some times LANES sums stays in registers.
"""

import functools

import llvmlite.binding
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiled_lanes import address_of, lanes, load, spread, store
from tinygrad_nnfs.kernels.compiler import inline, kernel
from tinygrad_nnfs.kernels.loops import LANES

# Rows and panels of LANES in a block: AVX-512 has 32 registers for LANES, AVX2 16 for half as many.
BLOCK = (8, 2) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (6, 1)


def _places_of_rows(builder, rows, at, count):
    """Where `count` rows have their element `at`: rows are (the first, the last of all, step).

    The last of all stands in for those beyond it.
    """
    first, last, step = cgutils.unpack_tuple(builder, rows)
    indices = [builder.add(first, first.type(i)) for i in range(count)]
    indices = [builder.select(builder.icmp_signed("<", i, last), i, last) for i in indices]
    return [builder.add(builder.mul(i, step), at) for i in indices]


def _places_of_block(builder, rows, at, count, panels):
    """Row by row, panel by panel."""
    return [
        builder.add(place, at.type(j * LANES))
        for place in _places_of_rows(builder, rows, at, count)
        for j in range(panels)
    ]


@intrinsic(prefer_literal=True)
def _load_block(typingctx, array, rows, at, count, panels):
    """The block whose first row begins at array[at], as a tuple."""
    height, width = count.literal_value, panels.literal_value
    block = types.UniTuple(lanes, height * width)

    def build(context, builder, signature, args):
        array, rows, at, *_ = args
        values = []
        for place in _places_of_block(builder, rows, at, height, width):
            address = address_of(context, builder, signature.args[0], array, place)
            values.append(builder.load(address, align=4))
        return context.make_tuple(builder, block, values)

    return block(array, rows, types.intp, count, panels), build


@intrinsic(prefer_literal=True)
def _store_block(typingctx, block, array, rows, at, panels):
    width = panels.literal_value

    def build(context, builder, signature, args):
        block, array, rows, at, _ = args
        values = cgutils.unpack_tuple(builder, block)
        places = _places_of_block(builder, rows, at, len(values) // width, width)
        for value, place in zip(values, places, strict=True):
            address = address_of(context, builder, signature.args[1], array, place)
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(block, array, rows, types.intp, panels), build


@intrinsic(prefer_literal=True)
def _add_products(typingctx, block, a, rows, column, b, at, step, panels):
    """The block, and a[i, column] times the lanes at b[at + j step] added to row i, panel j."""
    width = panels.literal_value

    def build(context, builder, signature, args):
        block, a, rows, column, b, at, step, _ = args
        values = cgutils.unpack_tuple(builder, block)
        factors = []
        for _ in range(width):
            address = address_of(context, builder, signature.args[4], b, at)
            factors.append(builder.load(address, align=4))
            at = builder.add(at, step)
        data = context.make_array(signature.args[1])(context, builder, a).data
        for i, place in enumerate(_places_of_rows(builder, rows, column, len(values) // width)):
            number = spread(builder, builder.load(builder.gep(data, [place])))
            for j, factor in enumerate(factors, i * width):
                product = builder.fmul(number, factor, flags=("contract",))
                values[j] = builder.fadd(values[j], product, flags=("contract",))
        return context.make_tuple(builder, signature.return_type, values)

    integer = types.intp
    return block(block, a, rows, integer, b, integer, integer, panels), build


@functools.cache
def multiply_by(height, width):
    """`multiply` by blocks of `height` rows and `width` panels."""

    @inline
    def multiply_block(
        shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, panels
    ):
        n, k, _ = shape
        row, column = a_steps
        panel, down = b_steps
        at = j * panel
        block = _load_block(start, (i, n - 1, start_step), j * LANES, height, panels)
        for place in range(0, k * column, column):
            block = _add_products(block, a, (i, n - 1, row), place, b, at, panel, panels)
            at += down
        _store_block(block, out, (i, n - 1, out_step), j * LANES, panels)

    @kernel
    def multiply(shape, a, a_steps, b, b_steps, start, start_step, out, out_step):
        """out = start + a b: (n, k) by (k, o) of the shape (n, k, o), o a multiple of LANES.

        All are flat arrays. a_steps: from row to row and from column to column of a; b_steps: from
        a panel of LANES columns to the next and from row to row of b; start_step, out_step: from
        row to row, where 0 is for one row in place of all.
        """
        n, _, o = shape
        whole = o // LANES // width * width
        for i in range(0, n, height):
            for j in range(0, whole, width):
                multiply_block(
                    shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, width
                )
            for j in range(whole, o // LANES):
                multiply_block(
                    shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, 1
                )

    return multiply


multiply = multiply_by(*BLOCK)


@inline
def add_rows(rows, total):
    """total += each of the rows that follow each other in a flat array."""
    for lane in range(0, total.size, LANES):
        value = load(total, lane)
        for at in range(lane, rows.size, total.size):
            value = value + load(rows, at)
        store(value, total, lane)
