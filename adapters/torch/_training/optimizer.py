"""The user's optimizer during a split: its groups, its state, and the length of its steps."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rmtspec.adapters.torch._layers.product_matrix import stacked
from rmtspec.adapters.torch._layers.split_layer import SplitLayer
from rmtspec.adapters.torch._layers.split_layers import SplitEmbedding
from rmtspec.adapters.torch._training.replicas import decided_once
from rmtspec.adapters.torch._weights.tensors import to_numpy, to_tensor
from rmtspec.adapters.torch._weights.weight_matrix import WeightMatrix
from rmtspec.adapting import RULES, SplitFactors, checks, listed, step_share
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecWarning

#: The optimizers whose state is mapped to the factors at a split.
_KNOWN = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
#: Their state: linear in the gradients, or in their squares.
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
#: What `match_step=True` means: the rule that did best with SGD and Adam.
MATCHED = "largest"


class FactorOptimizer:
    """An optimizer whose parameters are replaced by factors while it is in use.

    Factors replace the weight in its group, so that learning rate, weight decay, order and
    schedulers are kept. `matching` and `decay` are `match_step` and `decay` of `RMTPruner`; a
    factor's step is shortened after the optimizer has made it.
    """

    def __init__(self, optimizer: Any, matching: bool | str, decay: str) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(
                f"`optimizer` is a {type(optimizer).__name__}; expected a torch.optim.Optimizer "
                "over the model's parameters. If a library wraps it, pass the optimizer inside."
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InvalidValueError(
                "`optimizer` is LBFGS, which keeps one state for all parameters together, so that "
                "none can be replaced while it is in use. Use SGD, Adam or AdamW."
            )
        self.optimizer = optimizer
        self._known = isinstance(optimizer, _KNOWN)
        self._rule = _rule(matching, self._known)
        self._decay = decay
        if decay == "weight" and not self._known:
            raise InvalidValueError(
                f"decay='weight' is known for SGD, Adam and AdamW, not for "
                f"{type(optimizer).__name__}. Leave it at 'factors'."
            )
        #: By path; with the share of the step for each direction, or a single one for all.
        self._layers: dict[str, tuple[SplitLayer, list[float]]] = {}
        self._share: dict[nn.Parameter, float | torch.Tensor] = {}
        #: Factors before the step in progress.
        self._old: dict[nn.Parameter, torch.Tensor] = {}

    def watch(self) -> None:
        """Act on the optimizer's steps from now on; warn if its state cannot be mapped."""
        if not self._known:
            unmatched = "" if self._rule else ", nor its step matched"
            warnings.warn(
                f"The state of {type(self.optimizer).__name__} is not carried through a split"
                f"{unmatched}; how to do so is known for SGD, Adam and AdamW. Factors start with "
                "an empty state.",
                RmtspecWarning,
                stacklevel=3,
            )
        self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer.register_step_post_hook(self._after_step)

    def check_holds(self, model: nn.Module) -> None:
        """Raise if the model trains a parameter that the optimizer does not hold."""
        absent = [
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and self._place(parameter) is None
        ]
        if absent:
            raise InvalidValueError(
                f"The optimizer does not hold {listed(absent, most=8)}; expected all parameters "
                "that are trained. Build it over this model's parameters (after moving the model "
                "to its device), or freeze the others: requires_grad_(False)."
            )

    def snapshot(self) -> tuple[Any, ...]:
        """Return what a split changes, for `restore`."""
        groups = [
            {key: list(group[key]) for key in ("params", "param_names") if key in group}
            for group in self.optimizer.param_groups
        ]
        return groups, [dict(held) for held in self._held()]

    def _held(self) -> list[dict[Any, Any]]:
        return [self.optimizer.state, self._layers, self._share, self._old]

    def restore(self, known: tuple[Any, ...]) -> None:
        """Undo what was done since that snapshot."""
        groups, states = known
        for group, held in zip(self.optimizer.param_groups, groups, strict=True):
            for key, values in held.items():
                group[key][:] = values
        for state, before in zip(self._held(), states, strict=True):
            state.clear()
            state.update(before)

    def replace(
        self, path: str, matrices: list[WeightMatrix], parts: list[SplitFactors], layer: SplitLayer
    ) -> list[float]:
        """Replace the weight of a layer by its factors, and map the weight's state to them.

        Return the share of the step for each direction, or a single one for all.
        """
        weight = matrices[0].parameter
        share = decided_once(lambda: self._shares(parts, self._share.get(weight, 1.0)))
        state = self.optimizer.state.get(weight, {})
        mapped = _mapped(state, matrices, parts, layer) if self._known else {}
        self.adopt(path, weight, layer, share)
        self.optimizer.state.update(mapped)
        return share

    def adopt(self, path: str, weight: nn.Parameter, layer: SplitLayer, share: list[float]) -> None:
        """Replace the weight of a layer by its factors, with an empty state."""
        factors = [layer.inner.weight, layer.outer.weight]
        place = self._place(weight)
        if place is not None:
            group, index = place
            group["params"][index : index + 1] = factors
            if "param_names" in group:
                self._rename(group["param_names"], index, layer)
        self.optimizer.state.pop(weight, None)
        self._share.pop(weight, None)
        self._layers[path] = (layer, share)
        for factor, part in zip(factors, _spread(layer, share), strict=True):
            self._share[factor] = part

    def lower(
        self, path: str, old: SplitLayer, parts: list[SplitFactors], layer: SplitLayer
    ) -> list[float]:
        """Replace the factors of a layer by fewer directions, and map their state to these.

        Return the share of the step, which is that of a split of the product.
        """
        share = decided_once(lambda: self._shares(parts, 1.0))
        factors = [module.weight for module in (old.inner, old.outer)]
        states = [self.optimizer.state.pop(factor, {}) for factor in factors]
        mapped = _narrowed(states, old, parts, layer) if self._known else {}
        new = [module.weight for module in (layer.inner, layer.outer)]
        for before, after, part in zip(factors, new, _spread(layer, share), strict=True):
            place = self._place(before)
            if place is not None:
                place[0]["params"][place[1]] = after
            self._share.pop(before, None)
            self._share[after] = part
        self._layers.pop(path, None)
        self._layers[path] = (layer, share)
        self.optimizer.state.update(mapped)
        return share

    @property
    def newest(self) -> nn.Parameter:
        """A factor of the most recently split layer."""
        layer, _ = next(reversed(self._layers.values()))
        return _own(layer)[-1]

    def tensors_of(self, layer: SplitLayer) -> list[torch.Tensor]:
        """Return the factors of a layer and their state."""
        factors = _own(layer)
        held = [v for f in factors for v in self.optimizer.state.get(f, {}).values()]
        return [*factors, *(v for v in held if isinstance(v, torch.Tensor))]

    def _place(self, parameter: torch.Tensor) -> tuple[dict[str, Any], int] | None:
        for group in self.optimizer.param_groups:
            for index, held in enumerate(group["params"]):
                if held is parameter:
                    return group, index
        return None

    def _rename(self, names: list[str], index: int, layer: SplitLayer) -> None:
        """Name the factors that replaced a weight, and the bias that the outer one took over."""
        stem = names[index].removesuffix("weight")
        names[index : index + 1] = [f"{stem}inner.weight", f"{stem}outer.weight"]
        bias = layer.outer._parameters.get("bias")
        place = None if bias is None else self._place(bias)
        if place is not None:
            place[0]["param_names"][place[1]] = f"{stem}outer.bias"

    def _shares(self, parts: Sequence[SplitFactors], known: float | torch.Tensor) -> list[float]:
        """Return the share of a split; `known` is that of the weight, if it is itself a factor."""
        inherited = known if isinstance(known, float) else float(known.min())
        if not self._rule:
            return [inherited]
        shares = [step_share(self._rule, part.outer, part.inner) for part in parts]
        if shares[0].ndim:
            return [inherited * float(value) for value in np.concatenate(shares)]
        return [inherited * min(map(float, shares))]

    @torch.no_grad()
    def _before_step(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Remember the factors, and correct the gradients for the decay of their product."""
        decayed = self._decay == "weight"
        for layer, share in self._layers.values():
            if share != [1.0] or decayed:
                self._old |= {factor: factor.detach().clone() for factor in _own(layer)}
        if not (decayed and self._layers):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._decay_products()
            return None

        def with_decay() -> Any:
            loss = closure()
            self._decay_products()
            return loss

        return args[:1], {**kwargs, "closure": with_decay}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        """Shorten the step of each factor to its share."""
        groups = self._groups() if self._decay == "weight" else {}
        for factor, old in self._old.items():
            if factor.grad is None:
                continue
            share = self._share[factor]
            if isinstance(share, torch.Tensor):
                share = share.to(old)
            group = groups.get(factor)
            if group is not None and group["weight_decay"] and self._decoupled(group):
                if bool(getattr(self.optimizer, "found_inf", False)):
                    continue  # a fused step that was skipped
                shrink = 1.0 - float(group["lr"]) * group["weight_decay"]
                factor.sub_(old, alpha=shrink).mul_(share)
                factor.add_(old, alpha=max(shrink, 0.0) ** 0.5)
            else:
                factor.copy_(old.lerp_(factor, share))
        self._old = {}

    @torch.no_grad()
    def _decay_products(self) -> None:
        """Change the gradients so that the optimizer's decay becomes that of the products.

        With W = B A the gradients of |W|^2 / 2 are B A A^T and B^T B A; the optimizer adds B and A.
        """
        groups = self._groups()
        for layer, _ in self._layers.values():
            inner, outer = stacked(layer)
            of_inner, of_outer = outer.mT @ outer @ inner, outer @ (inner @ inner.mT)
            terms = [(layer.inner, of_inner), (layer.outer, of_outer)]
            if isinstance(layer, SplitEmbedding):
                terms = [(layer.inner, of_outer), (layer.outer, of_inner.mT)]
            for module, term in terms:
                if isinstance(module, SplitLayer) or module.weight.grad is None:
                    continue
                factor = module.weight
                group = groups.get(factor)
                if group is None or not group["weight_decay"] or self._decoupled(group):
                    continue
                scale = -group["weight_decay"] if group.get("maximize") else group["weight_decay"]
                loss_scale = getattr(self.optimizer, "grad_scale", None)
                if loss_scale is not None:  # a fused step divides the gradient by it
                    scale = scale * float(loss_scale)
                factor.grad.add_(term.reshape(factor.shape) - factor, alpha=scale)

    def _groups(self) -> dict[torch.Tensor, dict[str, Any]]:
        return {p: group for group in self.optimizer.param_groups for p in group["params"]}

    def _decoupled(self, group: dict[str, Any]) -> bool:
        adamw = isinstance(self.optimizer, torch.optim.AdamW)
        return adamw or bool(group.get("decoupled_weight_decay"))


def _rule(matching: bool | str, known: bool) -> str:
    """Return the rule of the step, or "" for none."""
    if isinstance(matching, str):
        return checks.choice(matching, "match_step", tuple(RULES))
    if not isinstance(matching, bool):
        raise InvalidTypeError(
            f"`match_step` is {matching!r}; expected True, False or one of {', '.join(RULES)}."
        )
    return MATCHED if matching and known else ""


def _own(layer: SplitLayer) -> list[nn.Parameter]:
    """Return the factors of a layer that were not themselves split."""
    return [m.weight for m in (layer.inner, layer.outer) if not isinstance(m, SplitLayer)]


def _spread(layer: SplitLayer, share: list[float]) -> list[float | torch.Tensor]:
    """Return the share of the step for the entries of the inner and of the outer factor."""
    if len(share) == 1:
        return [share[0], share[0]]
    inner, outer = (tensor.detach() for tensor in stacked(layer))
    values = np.reshape(np.asarray(share), (len(inner), layer.rank))
    rows = np.broadcast_to(values[:, :, None], inner.shape).reshape(-1, inner.shape[2])
    columns = np.broadcast_to(values[:, None, :], outer.shape).reshape(-1, layer.rank)
    return [tensor for _, tensor in _tensors(layer, rows, columns, layer.inner.weight)]


def _tensors(
    layer: SplitLayer, inner: NDArray[Any], outer: NDArray[Any], like: torch.Tensor
) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Return each parameter of a layer with values for the matrix's factors in its own layout."""
    return [
        (module.weight, to_tensor(values, like).reshape(module.weight.shape))
        for module, values in layer._arranged(inner, outer)
    ]


def _mapped(
    state: dict[str, Any],
    matrices: Sequence[WeightMatrix],
    parts: Sequence[SplitFactors],
    layer: SplitLayer,
) -> dict[torch.Tensor, dict[str, Any]]:
    """Return the state that the factors would have, had they been trained instead of the weight.

    With W = B A and the gradient G of W, that of A is B^T G and that of B is G A^T. First moments
    are linear in the gradients. Second moments are mapped by the squares of the factors, as is
    right for independent entries of G, and so stay positive.
    """
    factors: dict[torch.Tensor, dict[str, Any]] = {layer.inner.weight: {}, layer.outer.weight: {}}
    for key, value in state.items():
        if key not in (*_FIRST_MOMENTS, *_SECOND_MOMENTS):
            for held in factors.values():
                held[key] = value.clone() if isinstance(value, torch.Tensor) else value
            continue
        if value is None:
            continue
        if value.layout is not torch.strided:  # from an embedding with sparse gradients
            value = value.to_dense()
        power = 1 if key in _FIRST_MOMENTS else 2
        inner, outer = [], []
        for matrix, part in zip(matrices, parts, strict=True):
            moment = dataclasses.replace(matrix, parameter=value)()
            moment = np.asarray(moment, dtype=np.result_type(moment.dtype, np.float32))
            left, right = (side.astype(moment.dtype) ** power for side in (part.outer, part.inner))
            inner.append(left.T @ moment)
            outer.append(moment @ right.T)
        laid = _tensors(layer, np.concatenate(inner), np.concatenate(outer), value)
        for factor, tensor in laid:
            factors[factor][key] = tensor.to(factor.device)
    return factors


def _narrowed(
    states: Sequence[dict[str, Any]],
    old: SplitLayer,
    parts: Sequence[SplitFactors],
    layer: SplitLayer,
) -> dict[torch.Tensor, dict[str, Any]]:
    """Return the state of a layer's new factors from that of the `old` ones, of a higher rank.

    The new factors are B R and L A, with R = A A'^T / s and L = B'^T B / s, where A' and B' are the
    new factors and s the singular values kept. So the gradients of A' and B' are R^T times that of
    A and that of B times L^T, and moments map as in `_mapped`.
    """
    turns = []
    for inner, outer, part in zip(*(side.detach() for side in stacked(old)), parts, strict=True):
        scale = np.where(part.singular_values > 0.0, part.singular_values, 1.0)
        right = to_numpy(inner).astype(np.float64) @ part.inner.astype(np.float64).T / scale
        left = to_numpy(outer).astype(np.float64).T @ part.outer.astype(np.float64) / scale
        turns.append((right, left))  # (rank, new rank) both
    factors: dict[torch.Tensor, dict[str, Any]] = {layer.inner.weight: {}, layer.outer.weight: {}}
    modules = ((old.inner, layer.inner), (old.outer, layer.outer))
    for (_, new), state in zip(modules, states, strict=True):
        for key, value in state.items():
            if key not in (*_FIRST_MOMENTS, *_SECOND_MOMENTS):
                kept = value.clone() if isinstance(value, torch.Tensor) else value
                factors[new.weight][key] = kept
    for key in (*_FIRST_MOMENTS, *_SECOND_MOMENTS):
        values = [state[key] for state in states if state.get(key) is not None]
        if len(values) < len(states):
            continue
        dense = [v if v.layout is torch.strided else v.to_dense() for v in values]
        power = 1 if key in _FIRST_MOMENTS else 2
        moments = zip(
            *(to_numpy(side).astype(np.float64) for side in stacked(old, *dense)),
            turns,
            strict=True,
        )
        inner_outer = [
            ((right**power).T @ of_inner, of_outer @ left**power)
            for of_inner, of_outer, (right, left) in moments
        ]
        inner, outer = (np.concatenate(each) for each in zip(*inner_outer, strict=True))
        for factor, tensor in _tensors(layer, inner, outer, dense[0]):
            factors[factor][key] = tensor.to(factor.device)
    return factors
