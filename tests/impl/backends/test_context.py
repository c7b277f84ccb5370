"""What a call runs in, told apart: transforms, tracers, fake tensors, batched values."""

import pytest
import torch
from torch import func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from zipfmax.backends.context import cannot_read, is_batched, is_traced, plain_operations_only


def asked(run):
    """What the questions answer inside `run(function)`, which calls the function on a tensor."""
    answers = []

    def function(x):
        answers.append((plain_operations_only(), is_traced(x), cannot_read(x), is_batched(x)))
        return x * 1

    run(function)
    return answers[0]


def in_fake_mode(function):
    with FakeTensorMode():
        function(torch.ones(2))


def outside_the_mode(function):
    with FakeTensorMode():
        x = torch.ones(2)
    function(x)


def in_forward_mode(function):
    with forward_ad.dual_level():
        function(torch.ones(2))


def batched_gradients(function):
    x = torch.ones(2, requires_grad=True)
    y = x * 1
    y.register_hook(function)
    torch.autograd.grad(y, x, torch.ones(3, 2), is_grads_batched=True)


TRANSFORM, FORWARD = "a torch.func transform", "forward-mode automatic differentiation"
X = torch.ones(2)
CASES = {
    "a plain call": (lambda f: f(X), (None, False, False, False)),
    "no_grad": (lambda f: torch.no_grad()(f)(X), (None, False, False, False)),
    "grad": (lambda f: func.grad(lambda x: f(x).sum())(X), (TRANSFORM, False, False, False)),
    "vmap": (lambda f: func.vmap(f)(X), (TRANSFORM, False, True, True)),
    "vmap of grad": (lambda f: func.vmap(func.grad(lambda x: f(x).sum()))(X), (TRANSFORM, False, True, True)),
    "vmap over another": (lambda f: func.vmap(lambda y: f(X) + y)(X), (TRANSFORM, False, False, False)),
    "jvp": (lambda f: func.jvp(f, (X,), (X,)), (TRANSFORM, False, False, False)),
    "forward mode": (in_forward_mode, (FORWARD, False, False, False)),
    "jit.trace": (lambda f: torch.jit.trace(f, X), ("torch.jit.trace", False, True, False)),
    "fake mode": (in_fake_mode, (None, True, True, False)),
    "a fake tensor": (outside_the_mode, (None, True, True, False)),
    "make_fx": (lambda f: make_fx(f)(X), (None, True, True, False)),
    "batched gradients": (batched_gradients, (None, False, True, True)),
}


@pytest.mark.parametrize(("run", "expected"), CASES.values(), ids=CASES.keys())
def test_the_questions_are_answered(run, expected):
    assert asked(run) == expected


def test_nothing_is_left_active_afterwards():
    for run, _ in CASES.values():
        asked(run)
    assert asked(CASES["a plain call"][0]) == (None, False, False, False)
