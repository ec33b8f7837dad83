"""A language model without its weights: each is read when it is needed, and let go afterwards."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._pytree import tree_leaves

from rmtspec.adapters.torch._weights.tensors import to_tensor
from rmtspec.adapting import PathLike, StoredTensor, listed, matrices_in

#: What arguments of a block may be.
_CONSTANT = (torch.Tensor, bool, int, float, str, type(None), torch.dtype, torch.device)


class NotInBlocksError(Exception):
    """Why a model cannot be run block by block; a part of a sentence."""


class Call(NamedTuple):
    """What a model passes to one of its blocks besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class _EnoughError(Exception):
    """The last block has been reached: the model need not run on."""


class Skeleton:
    """A causal language model of transformers in a folder, to be run block by block.

    The blocks are the modules of the list with most parameters. Between them the model must hand
    the hidden states on as they are. What is not in a block (embeddings, last norm, head) is the
    frame; a module of it has its weights only while it runs.

    Attributes
    ----------
    model : torch.nn.Module
        In evaluation mode, on the CPU, its parameters on the meta device.
    blocks : dict of str to torch.nn.Module
        By their paths.

    Raises
    ------
    NotInBlocksError
        The model cannot be run this way.
    """

    def __init__(self, folder: PathLike) -> None:
        tensors = matrices_in(folder).tensors
        self.model = _without_weights(folder, tensors)
        self._sources = _sources(self.model, tensors)
        self.blocks = _blocks(self.model)
        self._in_blocks = {id(m) for block in self.blocks.values() for m in block.modules()}
        _check_frame(self.model, self._in_blocks)
        _check_separate(self.model, self.blocks)
        #: Whether blocks put out a tuple that begins with the hidden states; not known at first.
        self._wrapped: bool | None = None

    @contextmanager
    def loaded(self, name: str) -> Iterator[nn.Module]:
        """Give a block with its weights, as long as the context lasts."""
        block = self.blocks[name]
        with ExitStack() as stack:
            for module in block.modules():
                stack.callback(self._fill(module))
            yield block

    def calls(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, list[Call]]:
        """Return the first hidden states, and what the model passes to each block besides them.

        The blocks themselves do not run.
        """
        if self._wrapped is not None:
            return self._calls(batch, wrapped=self._wrapped)
        try:
            found, self._wrapped = self._calls(batch, wrapped=False), False
        except NotInBlocksError as problem:
            try:
                found, self._wrapped = self._calls(batch, wrapped=True), True
            except NotInBlocksError:
                raise problem from None
        return found

    def _calls(self, batch: Mapping[str, Any], *, wrapped: bool) -> tuple[torch.Tensor, list[Call]]:
        seen: list[Call] = []
        first: list[torch.Tensor] = []
        states: list[torch.Tensor] = []

        def answer(number: int, hidden: torch.Tensor, call: Call) -> Any:
            if number != len(seen) or (states and hidden is not states[-1]):
                raise NotInBlocksError("it does more between its blocks than hand on what they say")
            _check_constant(call)
            seen.append(call)
            if not states:
                first.append(hidden)
            if number == len(self.blocks) - 1:
                raise _EnoughError
            states.append(hidden.clone())  # so that what comes next can be told from it
            return (states[-1],) if wrapped else states[-1]

        with _failures("it fails without its blocks"):
            try:
                self._run(batch, answer)
            except _EnoughError:
                return first[0], seen
        raise NotInBlocksError("it does not run all of its blocks")

    def outputs(self, batch: Mapping[str, Any], last: torch.Tensor) -> Any:
        """Return what the model puts out if its last block puts out `last`."""

        def answer(number: int, hidden: torch.Tensor, call: Call) -> Any:
            state = last if number == len(self.blocks) - 1 else hidden
            return (state,) if self._wrapped else state

        return self._run(batch, answer)

    def check_outputs(self, batch: Mapping[str, Any], hidden: torch.Tensor) -> None:
        """Raise if the frame cannot make outputs of hidden states."""
        with _failures("its last layers fail without its blocks"):
            self.outputs(batch, hidden)

    def _run(
        self, batch: Mapping[str, Any], answer: Callable[[int, torch.Tensor, Call], Any]
    ) -> Any:
        """Run the frame; `answer` takes the place of the blocks."""

        def forward(number: int, *args: Any, **kwargs: Any) -> Any:
            rest = dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states", None)
            if not (isinstance(hidden, torch.Tensor) and hidden.is_floating_point()):
                raise NotInBlocksError("its blocks take something other than hidden states")
            return answer(number, hidden, Call(args[1:], rest))

        with ExitStack() as stack:
            for number, block in enumerate(self.blocks.values()):
                block.forward = partial(forward, number)
                stack.callback(delattr, block, "forward")
            for module in self.model.modules():
                if id(module) not in self._in_blocks and module._parameters:
                    self._fill_while_running(module, stack)
            return self.model(**batch)

    def _fill_while_running(self, module: nn.Module, stack: ExitStack) -> None:
        empty: list[Callable[[], None]] = []

        def before(*_: Any) -> None:
            empty.append(self._fill(module))

        def after(*_: Any) -> None:
            if empty:  # also called where reading failed
                empty.pop()()

        stack.callback(module.register_forward_pre_hook(before).remove)
        stack.callback(module.register_forward_hook(after, always_call=True).remove)

    def _fill(self, module: nn.Module) -> Callable[[], None]:
        """Read the parameters of a module; return what empties it again."""
        held = {name: p for name, p in module._parameters.items() if p is not None}
        for name, parameter in held.items():
            like = torch.empty(0, dtype=parameter.dtype)
            values = _read(self._sources[id(parameter)], like)
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
        return partial(module._parameters.update, held)


@contextmanager
def _failures(words: str) -> Iterator[None]:
    """Say of errors in the code of a model that it cannot be run block by block."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise NotInBlocksError(f"{words} ({first})") from error


def _without_weights(folder: PathLike, tensors: Mapping[str, StoredTensor]) -> Any:
    """Return the model that transformers makes of a folder, its parameters on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    classes: Any = AutoModelForCausalLM
    config: Any = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise NotInBlocksError("its weights are quantised")
    config.use_cache = False  # a cache would grow from batch to batch
    dtype = getattr(config, "dtype", None) or _first_dtype(tensors)

    def emptied(module: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        model: Any = classes.from_config(config, dtype=dtype)
    finally:
        hook.remove()
    if dtype != torch.float32 and getattr(model, "_keep_in_fp32_modules", None):
        raise NotInBlocksError("some of its layers have another dtype than their file")
    for name, buffer in model.named_buffers():
        if name in tensors and tensors[name].shape == tuple(buffer.shape):
            buffer.copy_(_read(tensors[name], buffer))
    return model.eval()


def _read(stored: StoredTensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of a stored tensor."""
    with warnings.catch_warnings():  # torch warns of read-only memory, which is only copied
        warnings.simplefilter("ignore", UserWarning)
        return to_tensor(stored(), like)


def _first_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype:
    short = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    found = next((short[t.dtype] for t in tensors.values() if t.dtype in short), "float32")
    dtype: torch.dtype = getattr(torch, found)
    return dtype


def _sources(model: nn.Module, tensors: Mapping[str, StoredTensor]) -> dict[int, StoredTensor]:
    """Return where each parameter is stored, by its id; a tied one under any of its names."""
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)
    sources, missing = {}, []
    for key, known in names.items():
        found = next((tensors[name] for name in known if name in tensors), None)
        if found is None or found.shape != shapes[key]:
            missing.append(known[0])
        else:
            sources[key] = found
    if missing:
        raise NotInBlocksError(
            f"its files lack {listed(map(repr, missing), most=2)}, as the model's class names and "
            "shapes it"
        )
    return sources


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of the list with most parameters, by path."""
    best: tuple[int, dict[str, nn.Module]] = (0, {})
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if size > best[0]:  # the outermost of nested lists comes first
            best = size, {f"{path}.{number}": block for number, block in enumerate(module)}
    if len(best[1]) < 2:
        raise NotInBlocksError("it has no list of two blocks or more")
    return best[1]


def _check_frame(model: Any, in_blocks: set[int]) -> None:
    """Raise if there are layers to calibrate that are in no block."""
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        multiplies = isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        multiplies = multiplies or type(module).__name__ == "Conv1D"
        if multiplies and id(module) not in in_blocks and module is not head:
            raise NotInBlocksError(f"its layer {path!r} is in none of its blocks")


def _check_separate(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Raise if two blocks share a parameter."""
    seen: set[int] = set()
    for block in blocks.values():
        own = {id(parameter) for parameter in block.parameters()}
        if own & seen:
            raise NotInBlocksError("its blocks share parameters")
        seen |= own


def _check_constant(call: Call) -> None:
    for leaf in tree_leaves((call.args, dict(call.kwargs))):
        if not isinstance(leaf, _CONSTANT):
            kind = type(leaf).__name__
            raise NotInBlocksError(f"its blocks are passed a {kind}, which may change as they run")


def same_calls(one: list[Call], other: list[Call]) -> bool:
    """Tell whether a model passes its blocks the same in two runs."""
    mine = tree_leaves([(call.args, dict(call.kwargs)) for call in one])
    others = tree_leaves([(call.args, dict(call.kwargs)) for call in other])
    if len(mine) != len(others):
        return False
    for a, b in zip(mine, others, strict=True):
        if isinstance(a, torch.Tensor):
            if not (isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)):
                return False
        elif a != b:
            return False
    return True
