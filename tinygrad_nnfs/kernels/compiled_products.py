"""Matrix products with few rows, compiled by numba.

BLAS rearranges both matrices before it multiplies, which takes long where a number is used for a
few dozen rows only. Here they are read where they lie, those of the first matrix one by one, those
of the second LANES at a time, and a block of ROWS times PANELS LANES sums stays in registers.
"""

import llvmlite.binding
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiled_lanes import address_of, lanes, load, spread, store
from tinygrad_nnfs.kernels.compiler import inline, kernel
from tinygrad_nnfs.kernels.loops import LANES

# AVX-512 has 32 registers for LANES; AVX2's 16 hold half as many
ROWS, PANELS = (8, 2) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (6, 1)


def _block(panels):
    """The type of a block: row by row, panel by panel."""
    return types.UniTuple(lanes, ROWS * panels.literal_value)


def _places_of_rows(builder, rows, at):
    """Where ROWS rows have their element `at`: rows are (the first, the last of all, step).

    The last of all stands in for those beyond it.
    """
    first, last, step = cgutils.unpack_tuple(builder, rows)
    indices = [builder.add(first, first.type(i)) for i in range(ROWS)]
    indices = [builder.select(builder.icmp_signed("<", i, last), i, last) for i in indices]
    return [builder.add(builder.mul(i, step), at) for i in indices]


def _places_of_block(builder, rows, at, panels):
    return [
        builder.add(place, at.type(j * LANES))
        for place in _places_of_rows(builder, rows, at)
        for j in range(panels)
    ]


@intrinsic(prefer_literal=True)
def _load_block(typingctx, array, rows, at, panels):
    block = _block(panels)

    def build(context, builder, signature, args):
        array, rows, at, _ = args
        values = []
        for place in _places_of_block(builder, rows, at, panels.literal_value):
            address = address_of(context, builder, signature.args[0], array, place)
            values.append(builder.load(address, align=4))
        return context.make_tuple(builder, block, values)

    return block(array, rows, types.intp, panels), build


@intrinsic
def _store_block(typingctx, block, array, rows, at):
    def build(context, builder, signature, args):
        block, array, rows, at = args
        values = cgutils.unpack_tuple(builder, block)
        places = _places_of_block(builder, rows, at, len(values) // ROWS)
        for value, place in zip(values, places, strict=True):
            address = address_of(context, builder, signature.args[1], array, place)
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(block, array, rows, types.intp), build


@intrinsic
def _add_products(typingctx, block, a, rows, at, b, panel, step):
    """The block, and to its row i, panel j added: a's row i at `at`, times b[panel + j step :]."""

    def build(context, builder, signature, args):
        block, a, rows, at, b, panel, step = args
        values = cgutils.unpack_tuple(builder, block)
        factors = []
        for _ in range(len(values) // ROWS):
            address = address_of(context, builder, signature.args[4], b, panel)
            factors.append(builder.load(address, align=4))
            panel = builder.add(panel, step)
        data = context.make_array(signature.args[1])(context, builder, a).data
        products = []
        for place in _places_of_rows(builder, rows, at):
            number = spread(builder, builder.load(builder.gep(data, [place])))
            products += [builder.fmul(number, factor, flags=("contract",)) for factor in factors]
        sums = [
            builder.fadd(*pair, flags=("contract",)) for pair in zip(values, products, strict=True)
        ]
        return context.make_tuple(builder, signature.return_type, sums)

    return block(block, a, rows, types.intp, b, types.intp, types.intp), build


@inline
def _multiply_block(shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, panels):
    n, k, _ = shape
    row, column = a_steps
    panel, down = b_steps
    at = j * panel
    block = _load_block(start, (i, n - 1, start_step), j * LANES, panels)
    for place in range(0, k * column, column):
        block = _add_products(block, a, (i, n - 1, row), place, b, at, panel)
        at += down
    _store_block(block, out, (i, n - 1, out_step), j * LANES)


@kernel
def multiply(shape, a, a_steps, b, b_steps, start, start_step, out, out_step):
    """out = start + a b: (n, k) by (k, o) of the shape (n, k, o), o a multiple of LANES.

    All are flat arrays. a_steps: from row to row and from column to column of a; b_steps: from a
    panel of LANES columns to the next and from row to row of b; start_step, out_step: from row to
    row, where 0 is for one row in place of all.
    """
    n, _, o = shape
    whole = o // LANES // PANELS * PANELS
    for i in range(0, n, ROWS):
        for j in range(0, whole, PANELS):
            _multiply_block(
                shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, PANELS
            )
        for j in range(whole, o // LANES):
            _multiply_block(
                shape, a, a_steps, b, b_steps, start, start_step, out, out_step, i, j, 1
            )


@inline
def add_rows(rows, total):
    """total += each of the rows that follow each other in a flat array."""
    for lane in range(0, total.size, LANES):
        value = load(total, lane)
        for at in range(lane, rows.size, total.size):
            value = value + load(rows, at)
        store(value, total, lane)
