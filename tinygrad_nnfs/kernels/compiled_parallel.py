"""A loop on several threads, all of it compiled by numba.

`parallel_for` offers the pieces of a loop to helpers: threads that wait in `help_until_idle`. Both
stay outside the interpreter, and a helper that waits looks for work all the time: so it has its
piece within a microsecond, where waking a thread takes fifty. `team` starts and wakes the helpers.

A team is (address, workers, shift): of the WORDS that all its threads read and write by atomic
instructions; how many threads may have a part, the owner of the loop and helpers; and by how many
bits pieces are smaller than usual, for tests.
"""

import os

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinygrad_nnfs.kernels.compiler import inline, kernel

# The words, integers of 8 bytes, eight in a cache line. It takes 100 ns to get a line that another
# processor has written to: so what is used together lies in one line, and what waiting helpers read
# has its own.
INVITED = 0  # how many helpers may join now: 0 when there is no loop
BODY, ARGUMENTS = 8, 9  # of the loop; addresses: of a _BODY, and of what it is called with
LENGTH, STEP = 10, 11
TAKEN = 16  # how many pieces
BY_HELPERS = 17  # how many of these by helpers
BUSY = 18  # how many helpers have not left
FAILED = 19  # 1 if a piece that a helper took has failed
OWNED = 20  # 1 while some thread has a loop here
WORDS = 24

PATIENCE = 2000  # times that a helper looks for work before it goes to sleep: half a millisecond

_INT = ir.IntType(64)
_BYTES = ir.IntType(8).as_pointer()
_BODY = ir.FunctionType(_INT, [_BYTES, _INT, _INT, _INT])  # arguments, worker, first, last: failed?

_let_others_run = types.ExternalFunction(
    "sched_yield" if os.name == "posix" else "SwitchToThread", types.int32()
)


def _word(builder, words, word):
    place = builder.add(words, builder.mul(word, _INT(8)))
    return builder.inttoptr(place, _INT.as_pointer())


@intrinsic
def _get(typingctx, words, word):
    def build(context, builder, signature, args):
        return builder.load_atomic(_word(builder, *args), "seq_cst", 8)

    return types.int64(types.int64, types.int64), build


@intrinsic
def _put(typingctx, words, word, value):
    """Whoever finds `value` there finds all that was written before."""

    def build(context, builder, signature, args):
        words, word, value = args
        builder.store_atomic(value, _word(builder, words, word), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build


@intrinsic
def _add(typingctx, words, word, value):
    """Add `value` to a word; what was there before."""

    def build(context, builder, signature, args):
        words, word, value = args
        return builder.atomic_rmw("add", _word(builder, words, word), value, "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), build


@intrinsic
def _swap(typingctx, words, word, value):
    """Put `value` into a word; what was there before."""

    def build(context, builder, signature, args):
        words, word, value = args
        return builder.atomic_rmw("xchg", _word(builder, words, word), value, "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), build


@intrinsic
def _address_of_body(typingctx, body, arguments):
    """The addresses of a _BODY that calls `body`, and of the arguments, in the caller's frame."""
    inner = body.get_call_type(typingctx, (*arguments.types, *[types.int64] * 3), {})

    def build(context, builder, signature, args):
        overload = body.dispatcher.overloads[inner.args]
        context.add_linking_libs(context.get_function(body, inner).libs)
        name = builder.module.get_unique_name("body")
        function = ir.Function(builder.module, _BODY, name)
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        given, *numbers = function.args
        kind = context.get_value_type(arguments).as_pointer()
        values = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(given, kind)))
        status, _ = context.call_internal_no_propagate(
            inside, overload.fndesc, inner, [*values, *numbers]
        )
        inside.ret(inside.zext(status.is_error, _INT))
        frame = cgutils.alloca_once_value(builder, args[1])
        addresses = [builder.ptrtoint(function, _INT), builder.ptrtoint(frame, _INT)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(body, arguments), build


@intrinsic
def _call(typingctx, body, arguments, worker, first, last):
    def build(context, builder, signature, args):
        body, arguments, *numbers = args
        function = builder.inttoptr(body, _BODY.as_pointer())
        return builder.call(function, [builder.inttoptr(arguments, _BYTES), *numbers])

    return types.int64(*[types.int64] * 5), build


@kernel
def _take_pieces(words, worker, body, arguments, length, step):
    """Pieces of a loop until all are taken. 1 if one of them failed.

    The owner takes them from the first on and helpers from the last: so a thread finds in its cache
    what it has left there in the loop before, over the same arrays.
    """
    failed = own = 0
    pieces = (length + step - 1) // step
    while _add(words, TAKEN, 1) < pieces:
        piece = pieces - 1 - _add(words, BY_HELPERS, 1) if worker else own
        own += 1
        first = piece * step
        failed |= _call(body, arguments, worker, first, min(first + step, length))
    return failed


@kernel
def _run(team, body, arguments, length, step):
    failed = 0
    words, workers, _ = team
    helpers = min(workers, (length + step - 1) // step) - 1
    if helpers <= 0 or _swap(words, OWNED, 1):  # nobody is there, or has time: alone
        for first in range(0, length, step):
            failed |= _call(body, arguments, 0, first, min(first + step, length))
    else:
        _put(words, BODY, body)
        _put(words, ARGUMENTS, arguments)
        _put(words, LENGTH, length)
        _put(words, STEP, step)
        _put(words, TAKEN, 0)
        _put(words, BY_HELPERS, 0)
        _put(words, FAILED, 0)
        _put(words, INVITED, helpers)
        failed = _take_pieces(words, 0, body, arguments, length, step)
        # A helper says that it is busy before it looks whether it is invited: one that is not seen
        # here will find that it is not. This takes more than `_put`: that might come after `_get`.
        _swap(words, INVITED, 0)
        while _get(words, BUSY):
            _let_others_run()
        failed |= _get(words, FAILED)
        _put(words, OWNED, 0)
    if failed:
        raise MemoryError("a piece of a compiled kernel failed")


@inline
def piece_size(team, size):
    """`size`, unless pieces are to be tiny."""
    return max(1, size >> team[2])


@inline
def equal_pieces(team, length, size):
    """The size of an even number of equal pieces of `length`, at most `size`."""
    pairs = max(1, (length - 1) // (2 * piece_size(team, size)) + 1)
    return max(1, (length - 1) // (2 * pairs) + 1)


@inline
def parallel_for(team, body, arguments, length, step):
    """body(*arguments, worker, first, last) for 0..length in pieces of `step`, in any order.

    A worker is a number below the team's workers that no other thread has meanwhile.
    """
    address, frame = _address_of_body(body, arguments)
    _run(team, address, frame, length, step)


@kernel
def help_until_idle(words, worker):
    """Take pieces of loops, as helper 1, 2, ..., until there was no loop for a while."""
    patience = PATIENCE
    while patience:
        patience -= 1
        if _get(words, INVITED) >= worker:
            _add(words, BUSY, 1)
            if _get(words, INVITED) >= worker:
                body, arguments = _get(words, BODY), _get(words, ARGUMENTS)
                length, step = _get(words, LENGTH), _get(words, STEP)
                if _take_pieces(words, worker, body, arguments, length, step):
                    _put(words, FAILED, 1)
            _add(words, BUSY, -1)
            patience = PATIENCE
        else:
            _let_others_run()
