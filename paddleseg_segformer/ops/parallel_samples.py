"""The samples of a batch in parallel on a CPU, with gradients."""

import copy
from typing import NamedTuple

import paddle
from paddle.autograd import PyLayer
from paddle.base import core, framework

from ..device import num_threads, parallel_map


def parallel_samples(function, layer, x, factors):
    """``function(layer, x, factors)``, where possible with parts of the batch in parallel.

    Most of Paddle's CPU operators use one thread, so that a training step is faster with the
    samples side by side. Each thread records the graph of its samples on a copy of the layer that
    shares the parameters' values; the backward passes run in parallel too, and their gradients are
    added. Results differ only by the order of summation. Not split are batches on GPUs, without
    gradients, in mixed precision, or with a gradient of ``x``.

    Args:
        function: Takes ``layer`` and parts of ``x`` and ``factors``; returns a list of float
            tensors ``[N, ...]``. It must treat samples independently, and draw no random numbers.
        layer: Has the parameters that ``function`` uses.
        x: Float tensor ``[N, ...]``.
        factors: List of tensors ``[N, ...]``, which get no gradient, and None.

    Returns:
        The list that ``function`` returns.
    """
    parameters = [p for p in layer.parameters() if not p.stop_gradient]
    can_split = trains_in_threads(x) and len(x) > 1 and x.stop_gradient
    if not can_split or not parameters:
        return function(layer, x, factors)

    def run(replica, part):
        return function(replica, x[part], [f if f is None else f[part] for f in factors])

    return list(_ParallelSamples.apply(run, layer, len(x), *parameters))


def trains_in_threads(x):
    """Whether x is on a CPU of several threads, and gradients are recorded in full precision."""
    return (
        paddle.in_dynamic_mode()
        and x.place.is_cpu_place()
        and num_threads() > 1
        and paddle.is_grad_enabled()
        and framework._dygraph_tracer()._amp_level == core.AmpLevel.O0
    )


class _ParallelSamples(PyLayer):
    @staticmethod
    def forward(ctx, run, layer, samples, *parameters):
        count = min(samples, num_threads())
        bounds = [samples * i // count for i in range(count + 1)]

        def record(part):
            aliases = [_alias(parameter) for parameter in parameters]
            replica = _replicate(layer, dict(zip(map(id, parameters), aliases)))
            with paddle.enable_grad():
                outputs, gradients = run(replica, part), []
                root = _Root.apply(gradients, *outputs)
            graph = _Graph(part, aliases, gradients, root)
            return graph, [output.detach() for output in outputs]

        parts = [slice(*pair) for pair in zip(bounds, bounds[1:])]
        ctx.graphs, outputs = zip(*parallel_map(record, parts))
        return tuple(map(paddle.concat, zip(*outputs)))

    @staticmethod
    def backward(ctx, *upstream):
        def run(graph):
            graph.gradients.extend(gradient[graph.part] for gradient in upstream)
            graph.root.backward()

        parallel_map(run, ctx.graphs)
        aliases = zip(*(graph.aliases for graph in ctx.graphs))
        return tuple(parallel_map(_add_gradients, aliases))


class _Graph(NamedTuple):
    """The graph of a part of the batch."""

    part: slice
    aliases: list  # of the parameters
    gradients: list  # of the outputs, empty before the backward pass
    root: paddle.Tensor


class _Root(PyLayer):
    """A scalar whose backward pass goes on with a list of gradients that is filled just before.

    As the root of a graph it replaces outputs, so that only the whole batch's are kept.
    """

    @staticmethod
    def forward(ctx, gradients, *outputs):
        ctx.gradients = gradients
        return paddle.zeros([])

    @staticmethod
    def backward(ctx, _):
        return tuple(ctx.gradients)


def _alias(parameter):
    """A leaf of another graph with the same memory."""
    alias = parameter.detach()
    alias.stop_gradient = False
    return alias


def _add_gradients(aliases):
    """The sum of their gradients; None if they have none."""
    first, *others = (alias.grad for alias in aliases)
    for other in others if first is not None else ():
        first.add_(other)
    return first


def _replicate(layer, replaced):
    """A copy of a layer and its sublayers with other parameters, by the id of the replaced one."""
    replica = copy.copy(layer)
    replica._parameters = {n: replaced.get(id(p), p) for n, p in layer._parameters.items()}
    replica._sub_layers = {n: _replicate(sub, replaced) for n, sub in layer._sub_layers.items()}
    return replica
