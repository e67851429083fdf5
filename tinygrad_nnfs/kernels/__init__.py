"""Faster variants of ops for one backend, registered on ops that are complete without them.

Of two variants that apply to a call the one that was registered last is used: so the general ones
are imported before the special ones.
"""

# isort: off
from tinygrad_nnfs.kernels import im2col as im2col
from tinygrad_nnfs.kernels import shared_columns as shared_columns
from tinygrad_nnfs.kernels import winograd_products as winograd_products
from tinygrad_nnfs.kernels import direct as direct
from tinygrad_nnfs.kernels import winograd as winograd

# isort: on
from tinygrad_nnfs.kernels import cublas as cublas
from tinygrad_nnfs.kernels import cuda as cuda
from tinygrad_nnfs.kernels import dense as dense
from tinygrad_nnfs.kernels import descent as descent
from tinygrad_nnfs.kernels import elementwise as elementwise
from tinygrad_nnfs.kernels import loss as loss
from tinygrad_nnfs.kernels import reshape as reshape
