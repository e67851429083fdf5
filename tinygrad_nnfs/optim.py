"""Optimisers, learning-rate schedules and gradient clipping, in order of rising complexity.

Every optimiser updates its parameters in place from their `.grad`; a parameter without a gradient
is left alone. Hyper-parameters live in `groups`, so that layers can differ:

    SGD([{"params": weights, "weight_decay": 1e-4}, {"params": biases}], lr=0.01, momentum=0.9)
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy import ndarray

from tinygrad_nnfs import backend, kernels
from tinygrad_nnfs.backend import Array
from tinygrad_nnfs.replay import live, live_number
from tinygrad_nnfs.tensor import Parameter, Tensor


class Optimizer:
    """Parameter groups and the state that an update rule keeps for each parameter.

    `keeps`, by which `load_state_dict` goes, names what `update` puts into the state: arrays like
    the parameter (np.ndarray) and numbers (int). None: it can be anything.
    """

    keeps: ClassVar[Mapping[str, type] | None] = None

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Mapping[str, Any]],
        **defaults: Any,
    ) -> None:
        if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
            found = type(parameters).__name__
            raise TypeError(
                f"{self._name}: expected an iterable of Parameters, as of network.parameters(), "
                f"found one {found}"
            )
        given: list[Any] = list(parameters)
        if not given:
            raise ValueError(f"{self._name}: there are no parameters to optimise")
        if not isinstance(given[0], Mapping):
            given = [{"params": given}]
        self.groups: list[dict[str, Any]] = []
        known: set[Tensor] = set()
        for group in given:
            if not isinstance(group, Mapping) or "params" not in group:
                raise TypeError(f'{self._name}: a group is a dict with "params", found {group!r}')
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise ValueError(
                    f"{self._name}: a group has unknown settings {sorted(unknown)}; "
                    f"known: {sorted(defaults)}"
                )
            settings = {**defaults, **group, "params": list(group["params"])}
            self.check(settings)
            for parameter in settings["params"]:
                if not isinstance(parameter, Parameter):
                    raise TypeError(
                        f"{self._name}: expected Parameters, found a {type(parameter).__name__}"
                    )
                if parameter in known:
                    raise ValueError(f"{self._name}: a parameter was given twice")
                known.add(parameter)
            self.groups.append(settings)
        self.state: dict[Tensor, dict[str, Any]] = {}

    @property
    def _name(self) -> str:
        return type(self).__name__

    def check(self, settings: dict[str, Any]) -> None:
        """Raise ValueError for a hyper-parameter out of its range; Python numbers for numpy's."""
        for name in settings.keys() & {"lr", "weight_decay", "eps", "momentum"}:
            if callable(settings[name]):
                raise TypeError(
                    f"{self._name}: {name} is a number; with a schedule set optimizer.lr = "
                    "schedule(epoch) before each epoch or step"
                )
            settings[name] = float(settings[name])
            if not 0 <= settings[name] < math.inf:
                raise ValueError(f"{self._name}: {name} must be >= 0, found {settings[name]:g}")

    @property
    def lr(self) -> float:
        """The learning rate of all groups; each group's own is `groups[i]["lr"]`."""
        rates = {group["lr"] for group in self.groups}
        if len(rates) > 1:
            raise ValueError(
                f"the groups have different learning rates {sorted(rates)}: "
                'read and set groups[i]["lr"]'
            )
        return float(rates.pop())

    @lr.setter
    def lr(self, value: float) -> None:
        _ = self.lr  # groups that differ are not to be levelled by accident
        self.check({"lr": value})
        for group in self.groups:
            group["lr"] = float(value)

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        for group in self.groups:
            for parameter in group["params"]:
                if parameter.node is not None:
                    parameter.node.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient. Raises if none has one."""
        on_cpu: list[Update] = []
        on_gpu: list[Update] = []
        for group in self.groups:
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is not None:
                    state = self.state.get(parameter)
                    if state is None:
                        state = self.state[parameter] = {}
                    data = parameter.data
                    updates = on_cpu if type(data) is ndarray else on_gpu
                    updates.append((data, grad.data, state, group))
        if on_cpu:
            self.update_on_cpu(on_cpu)
        elif not on_gpu:
            raise RuntimeError(
                f"{self._name}.step: no parameter has a gradient: call backward() first, and "
                "zero_grad() before backward(), not after it"
            )
        for dtype in {data.dtype: None for data, *_ in on_gpu}:
            self.update_on_gpu([update for update in on_gpu if update[0].dtype == dtype])

    def state_dict(self) -> dict[str, np.ndarray]:
        """A snapshot of what the update rule remembers: numpy arrays, copied.

        The names are "<number of the parameter>.<name>", such as "0.velocity". Hyper-parameters
        are not in it: they are the program's.
        """
        return {
            f"{i}.{name}": np.array(
                backend.move(value, "cpu") if backend.is_array(value) else value
            )
            for i, parameter in enumerate(self._parameters())
            for name, value in self.state.get(parameter, {}).items()
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Remember what `state_dict` returned.

        Raises ValueError if that does not fit, or is another optimiser's, and then nothing is
        changed.
        """
        parameters = self._parameters()
        restored: dict[Tensor, dict[str, Any]] = {}
        for key, given in state.items():
            value = np.asarray(given)
            number, _, name = key.partition(".")
            if not number.isdecimal() or int(number) >= len(parameters) or not name:
                raise ValueError(
                    f"{self._name}.load_state_dict: {key!r} is unknown: there are "
                    f"{len(parameters)} parameters"
                )
            parameter = parameters[int(number)]
            mine = restored.setdefault(parameter, {})
            if value.dtype.kind == "i" and value.shape == ():
                mine[name] = int(value)  # Adam's number of steps
                continue
            if (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
                raise ValueError(
                    f"{self._name}.load_state_dict: {key} is {value.dtype} {value.shape}, "
                    f"expected {parameter.dtype} {parameter.shape}"
                )
            # in the parameter's own memory order, for which the fast update looks
            _buffer(mine, name, parameter.data)[...] = backend.move(value, parameter.device)
        for i, parameter in enumerate(parameters):
            mine = restored.get(parameter, {})
            found = {k: np.ndarray if backend.is_array(v) else int for k, v in mine.items()}
            if found and self.keeps is not None and found != self.keeps:
                raise ValueError(
                    f"{self._name}.load_state_dict: of parameter {i} there is {sorted(mine)}, "
                    f"expected {sorted(self.keeps)}"
                )
        self.state = {parameter: self.state.get(parameter, {}) for parameter in restored}
        for known, mine in restored.items():
            own = self.state[known]
            for name in own.keys() - mine.keys():
                del own[name]
            for name, value in mine.items():
                if name in own and backend.is_array(value):
                    own[name][...] = value  # in place: a captured step uses this memory
                else:
                    own[name] = value

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.groups for parameter in group["params"]]

    def update(
        self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change `data` in place. `state` is the parameter's own, empty at first."""
        raise TypeError(f"{type(self).__name__} has no update method: write one")

    def update_on_cpu(self, updates: "list[Update]") -> None:
        """Update parameters on the CPU: `update` for each, or a kernel that does the same."""
        for update in updates:
            self.update(*update)

    def update_on_gpu(self, updates: "list[Update]") -> None:
        """Update parameters of one dtype on a GPU: `update` for each, or a kernel for all at once.

        While a step is captured the learning rate that `update` finds is an array on the GPU.
        """
        kernel_takes_them = all(kernels.cuda.takes_update(data, grad) for data, grad, *_ in updates)
        if kernel_takes_them and self.update_at_once(updates):
            return
        for data, grad, state, group in updates:
            lr = live_number(functools.partial(group.__getitem__, "lr"), data.dtype)
            self.update(data, grad, state, {**group, "lr": lr})

    def update_at_once(self, updates: "list[Update]") -> bool:
        """Launch a kernel that does what `update` would do; False where there is none for it."""
        return False


# what `update` is called with: data, gradient, state, group
Update = tuple[Array, Array, dict[str, Any], dict[str, Any]]


def _buffer(state: dict[str, Any], name: str, like: Array) -> Array:
    """An array of the optimiser's own, zero at first, of the shape of `like`."""
    if name not in state:
        state[name] = backend.of(like).zeros_like(like)
    return state[name]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as Sutskever et al., 2013, write it.

    With gradient g, velocity v (0 at first), momentum mu and learning rate lr:

        g = g + weight_decay theta
        v = mu v + lr g
        theta = theta - v                      (nesterov: theta = theta - (mu v + lr g))

    The learning rate stands inside the velocity, so that a change of it takes effect gradually
    (PyTorch multiplies the whole velocity by it instead; the two agree while lr is constant).
    """

    keeps: ClassVar[Mapping[str, type] | None] = {"velocity": np.ndarray}

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Mapping[str, Any]],
        lr: float,
        momentum: float = 0.0,
        *,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        momentum = settings.get("momentum", 0.0)
        if not momentum < 1:
            raise ValueError(f"SGD: momentum must be in [0, 1), found {momentum:g}")
        if settings.get("nesterov") and not momentum:
            raise ValueError("SGD: nesterov needs a momentum > 0")

    def update(
        self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        lr, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        step = grad * lr
        if decay:
            step += data * (lr * decay)
        if momentum:
            velocity = _buffer(state, "velocity", data)
            velocity *= momentum
            velocity += step
            step = step + momentum * velocity if group["nesterov"] else velocity
        data -= step

    def update_on_cpu(self, updates: list[Update]) -> None:
        if type(self).update is SGD.update:  # a subclass may have a rule of its own
            updates = kernels.descent.take(updates)
        super().update_on_cpu(updates)

    def update_at_once(self, updates: list[Update]) -> bool:
        if type(self).update is not SGD.update:
            return False
        tensors = [
            {
                "theta": data,
                "gradient": grad,
                "velocity": _buffer(state, "velocity", data) if group["momentum"] else None,
                **{name: group[name] for name in ("weight_decay", "momentum", "nesterov")},
            }
            for data, grad, state, group in updates
        ]
        kernels.cuda.momentum_step(
            tensors, live(lambda: [float(group["lr"]) for *_, group in updates])
        )
        return True


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015, algorithm 1), with L2 regularisation added to the gradient.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
    theta = theta - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """

    keeps: ClassVar[Mapping[str, type] | None] = {
        "mean": np.ndarray,
        "square": np.ndarray,
        "t": int,
    }

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def check(self, settings: dict[str, Any]) -> None:
        super().check(settings)
        if not all(0 <= beta < 1 for beta in settings.get("betas", ())):
            raise ValueError(f"{self._name}: betas must be in [0, 1), found {settings['betas']}")

    def update(
        self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * data
        self.descend(data, grad, state, group)

    def descend(
        self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        xp = backend.of(data)
        b1, b2 = group["betas"]
        mean, square = _buffer(state, "mean", data), _buffer(state, "square", data)
        corrections = live(lambda: _corrections(state, group))
        if backend.is_array(corrections):
            corrections = corrections.astype(data.dtype)
        mean *= b1
        mean += (1 - b1) * grad
        square *= b2
        square += (1 - b2) * grad**2
        deviation = xp.sqrt(square / corrections[1])
        deviation += group["eps"]
        data -= group["lr"] / corrections[0] * mean / deviation

    def update_at_once(self, updates: list[Update]) -> bool:
        rule = type(self)
        if rule.update not in (Adam.update, AdamW.update) or rule.descend is not Adam.descend:
            return False  # a subclass has a rule of its own
        tensors = [
            {
                "theta": data,
                "gradient": grad,
                "mean": _buffer(state, "mean", data),
                "square": _buffer(state, "square", data),
                "beta1": group["betas"][0],
                "beta2": group["betas"][1],
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "decoupled": rule.update is AdamW.update,
            }
            for data, grad, state, group in updates
        ]

        def numbers() -> list[float]:
            each = [(group["lr"], *_corrections(state, group)) for _, _, state, group in updates]
            return [float(number) for some in each for number in some]

        kernels.cuda.adam_step(tensors, live(numbers))
        return True


def _corrections(state: dict[str, Any], group: dict[str, Any]) -> list[float]:
    """1 - beta^t for both betas, at the next t: moments that began as 0 are too small by that."""
    t = state["t"] = state.get("t", 0) + 1
    return [1.0 - beta**t for beta in group["betas"]]


class AdamW(Adam):
    """Adam whose weight decay leaves the moments alone (Loshchilov and Hutter, 2019):

    theta = theta - lr weight_decay theta, then Adam's step.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[Mapping[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, data: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        data *= 1 - group["lr"] * group["weight_decay"]
        self.descend(data, grad, state, group)


class WeightAverage:
    """An exponential moving average of parameters, often better than the last ones are.

    After each `update`: average = d average + (1 - d) theta; d = min(decay, (1 + t) / (10 + t))
    at the t-th update, so that the initial weights are soon forgotten (Polyak and Juditsky, 1992;
    the warm-up is that of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, parameters: Iterable[Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"WeightAverage: decay must be in [0, 1), found {decay}")
        self.parameters, self.decay, self.t = list(parameters), decay, 0
        self.averages = [parameter.data.copy("K") for parameter in self.parameters]

    def update(self) -> None:
        self.t += 1
        share = 1 - min(self.decay, (1 + self.t) / (10 + self.t))
        for average, parameter in zip(self.averages, self.parameters):
            average += share * (parameter.data - average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the parameters have the averages for their values."""
        own = [parameter.data for parameter in self.parameters]
        for parameter, average in zip(self.parameters, self.averages):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, data in zip(self.parameters, own):
                parameter.data = data

    def state_dict(self) -> dict[str, np.ndarray]:
        """A snapshot: "t", and the averages by the number of their parameter."""
        averages = {str(i): np.array(backend.move(a, "cpu")) for i, a in enumerate(self.averages)}
        return {"t": np.array(self.t), **averages}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state_dict` returned. Raises ValueError if that does not fit."""
        wanted = {"t": (), **{str(i): a.shape for i, a in enumerate(self.averages)}}
        found = {name: value.shape for name, value in state.items()}
        if found != wanted:
            raise ValueError(f"WeightAverage.load_state_dict: expected {wanted}, found {found}")
        self.t = int(state["t"])
        for i, average in enumerate(self.averages):
            average[...] = backend.move(state[str(i)], backend.device_of(average))


def clip_grad_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients together so that their joint Euclidean norm is at most `max_norm`.

    Returns the norm before scaling; if that is not finite, the gradients are left as they are.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be > 0, found {max_norm}")
    distinct = dict.fromkeys(parameters)  # a parameter that is shared counts once
    grads = [parameter.grad.data for parameter in distinct if parameter.grad is not None]
    norm = math.sqrt(sum(float((g.astype("float64") ** 2).sum()) for g in grads))
    if max_norm < norm < math.inf:
        for g in grads:
            g *= max_norm / norm
    return norm


# -- schedules: the learning rate as a function of time --------------------------------------------
# `optimizer.lr = schedule(epoch)`. The unit of time is the caller's: epochs or steps, from 0.


def _check_positive(schedule: str, **lengths: float) -> None:
    for name, value in lengths.items():
        if not value > 0:
            raise ValueError(f"{schedule}: {name} must be > 0, found {value}")


@dataclass(frozen=True)
class Constant:
    """lr."""

    lr: float

    def __call__(self, time: float) -> float:
        return self.lr


@dataclass(frozen=True)
class InverseTimeDecay:
    """lr / (1 + decay time)."""

    lr: float
    decay: float

    def __call__(self, time: float) -> float:
        return self.lr / (1 + self.decay * time)


@dataclass(frozen=True)
class StepDecay:
    """lr factor^floor(time / every): multiplied by `factor` after `every` units of time."""

    lr: float
    every: float
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_positive("StepDecay", every=self.every)

    def __call__(self, time: float) -> float:
        return self.lr * self.factor ** math.floor(time / self.every)


@dataclass(frozen=True)
class CosineDecay:
    """From lr at 0 to `final` at `total` along half a cosine (Loshchilov and Hutter, 2017)."""

    lr: float
    total: float
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_positive("CosineDecay", total=self.total)

    def __call__(self, time: float) -> float:
        progress = min(max(time / self.total, 0.0), 1.0)
        return self.final + (self.lr - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class OneCycle:
    """Up from lr / 25 to lr over the first `warmup` share of `total`, then down to lr / 250,000.

    Both ways along half a cosine (Smith and Topin, 2018; the numbers are PyTorch's).
    """

    lr: float
    total: float
    warmup: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        _check_positive("OneCycle", total=self.total)
        if not 0 < self.warmup < 1:
            raise ValueError(f"OneCycle: warmup must be in (0, 1), found {self.warmup}")

    def __call__(self, time: float) -> float:
        start = self.lr / self.start_divisor
        peak = self.warmup * self.total
        if time < peak:
            return CosineDecay(start, peak, self.lr)(time)
        return CosineDecay(self.lr, self.total - peak, start / self.final_divisor)(time - peak)
