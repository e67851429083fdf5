"""A small deep-learning framework: tensors, a tape, and ops with hand-written backward rules."""

from tinygrad_nnfs import data, nn, ops, optim
from tinygrad_nnfs import kernels as kernels
from tinygrad_nnfs.backend import get_rng_state, manual_seed, set_rng_state
from tinygrad_nnfs.debug import AnomalyError, detect_anomaly
from tinygrad_nnfs.kernels.cublas import gpu_precision
from tinygrad_nnfs.kernels.threads import num_threads, set_num_threads
from tinygrad_nnfs.profiling import profile
from tinygrad_nnfs.registry import OPS, Float, Index, Number, op, reference_kernels
from tinygrad_nnfs.replay import capture
from tinygrad_nnfs.tensor import Parameter, Tensor, from_dlpack, no_grad

__all__ = [
    "OPS",
    "AnomalyError",
    "Float",
    "Index",
    "Number",
    "Parameter",
    "Tensor",
    "capture",
    "data",
    "detect_anomaly",
    "from_dlpack",
    "get_rng_state",
    "gpu_precision",
    "manual_seed",
    "nn",
    "no_grad",
    "num_threads",
    "op",
    "ops",
    "optim",
    "profile",
    "reference_kernels",
    "set_num_threads",
    "set_rng_state",
]
__version__ = "0.1.0"
