"""Measures a model on examples: squared gradients, or the Gram matrices of its layers' inputs.

Each example's part is computed on one thread, and parts are added in the examples' order: the
result does not depend on how many threads there are.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from app.contract.catalogue.method import Statistic
from worker.calibration.examples import ForcedExample
from worker.merging.linalg.ops import gram, mirror

Part = dict[str, torch.Tensor]
"""An example's tensors by parameter name."""
Prepare = Callable[[int], ForcedExample | None]


@dataclass
class Measured:
    """The mean over examples (of Gram matrices: over a layer's inputs), and who shares a tensor."""

    tensors: Part
    shared: dict[str, str] = field(default_factory=dict)
    examples: int = 0


def measure(
    model: nn.Module,
    kind: Statistic,
    prepare: Prepare,
    count: int,
    *,
    threads: int,
    memory_bytes: int,
    seed: int = 0,
    on_example: Callable[[], None] = lambda: None,
) -> Measured:
    """Return what a model's statistic is over `count` examples; those without a `prepare` are left.

    `on_example` is called after each, and may raise to stop.
    """
    if kind == "input_grams":
        with _InputHooks(model) as hooks:
            total = _summed(hooks.part, prepare, count, threads, memory_bytes, on_example)
            return hooks.finish(total)
    sampled = kind == "sampled_squared_gradients"

    def part(number: int, forced: ForcedExample) -> Part:
        return _squared_gradients(model, forced, seed + number if sampled else None)

    total = _summed(part, prepare, count, threads, memory_bytes, on_example)
    for one in total.tensors.values():
        one /= max(1, total.examples)
    return total


def _squared_gradients(model: nn.Module, forced: ForcedExample, seed: int | None) -> Part:
    """Return the squared gradient of the references' log-likelihood, or of drawn tokens'.

    A drawn token follows the reference's earlier tokens: in the mean over draws, the squared
    gradient of the sum is the sum of the tokens' Fisher information.
    """
    likelihoods = forced.logits(model).log_softmax(-1)
    labels = forced.tokens[0, forced.prompt :].to(likelihoods.device)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(likelihoods.detach().exp().cpu(), 1, generator=generator)
        labels = drawn[:, 0].to(likelihoods.device)
    total = likelihoods.gather(1, labels[:, None]).sum()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if found is None else found.square_()
        for (name, one), found in zip(trained.items(), gradients, strict=True)
    }


class _InputHooks:
    """Hooks on a model's linear layers, which add up the Gram matrices of what goes in.

    Layers that get the same tensor (query, key and value; all cross-attentions) share a matrix.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and id(module.weight) not in embeddings
        }
        self._shared: dict[str, str] = {}
        self._here = threading.local()
        self._handles: list[Any] = []

    def __enter__(self) -> _InputHooks:
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def part(self, _: int, forced: ForcedExample) -> Part:
        """Return the Gram matrices of one example, and how many inputs each layer had."""
        self._here.part, self._here.heard = {}, {}
        forced.logits(self._model)
        part: Part = self._here.part
        return part

    def finish(self, total: Measured) -> Measured:
        """Return the mean over a layer's inputs."""
        tensors = total.tensors
        counts = {name: tensors.pop(name) for name in list(tensors) if name.endswith("/inputs")}
        for name, matrix in tensors.items():
            mirror(matrix).div_(counts[f"{name}/inputs"])
        return Measured(tensors, self._shared, total.examples)

    def _hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        name = f"{layer}.weight"

        def listen(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = inputs[0]
            known, first = self._here.heard.get(id(given), (None, name))
            if known is not None and known() is given:
                self._shared[name] = first
                return
            self._here.heard[id(given)] = weakref.ref(given), name
            rows = given.detach().flatten(0, -2).float().contiguous()
            self._here.part[name] = gram(rows)
            self._here.part[f"{name}/inputs"] = torch.tensor(float(len(rows))).to(rows.device)

        return listen


def _summed(
    part: Callable[[int, ForcedExample], Part],
    prepare: Prepare,
    count: int,
    threads: int,
    memory_bytes: int,
    on_example: Callable[[], None],
) -> Measured:
    total = Measured({})

    def work(number: int) -> Part | None:
        forced = prepare(number)
        return None if forced is None else part(number, forced)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found in _in_order(pool, work, range(count), threads, memory_bytes):
            on_example()
            if found is None:
                continue
            total.examples += 1
            for name, tensor in found.items():
                if name in total.tensors:
                    total.tensors[name] += tensor
                else:
                    total.tensors[name] = tensor
    return total


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[int], Part | None],
    numbers: Sequence[int],
    threads: int,
    memory_bytes: int,
) -> Iterator[Part | None]:
    """Yield the results in order, as many at once as threads and memory allow; the first alone."""
    running: deque[Future[Part | None]] = deque()
    at_once, left = 1, iter(numbers)
    try:
        while True:
            for number in left:
                running.append(pool.submit(work, number))
                if len(running) >= at_once:
                    break
            if not running:
                return
            found = running.popleft().result()
            yield found
            if found:
                # Gradients and activations take about as much as the result.
                size = 2 * sum(tensor.nbytes for tensor in found.values())
                at_once = max(1, min(threads, memory_bytes // max(1, size)))
    finally:
        for future in running:
            future.cancel()
