"""Signal, drift, and what alpha is under Adam and under SGD: python -m pytest tests/test_signal_drift.py"""

import inspect
import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from lora_alpha import LoRALinear, signal_drift, train

sizes, ranks, seeds = st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31)
powers = st.integers(-6, 6).map(lambda j: 2.0**j)
U = 2.0**-53  # float64's unit roundoff


def factors(m, n, r, seed):
    """A (r, n), B (m, r), dA, dB and G (m, n) in float64, all of them non-zero."""
    g = torch.Generator().manual_seed(seed)
    shapes = (r, n), (m, r), (r, n), (m, r), (m, n)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def step(A, B, G, s, optimizer, n_steps=1):
    """The change (dA, dB) of A and B over the last of n_steps of a torch optimizer on the loss ⟨G, s·B·A⟩."""
    A, B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
    opt = optimizer([A, B])
    for _ in range(n_steps):
        opt.zero_grad()
        (G * (s * B @ A)).sum().backward()
        before = A.detach().clone(), B.detach().clone()
        opt.step()
    return (*before, A.detach() - before[0], B.detach() - before[1])


def adam(lr):
    return lambda params: torch.optim.AdamW(params, lr=lr, eps=1e-100, weight_decay=0.0)


def sgd(lr):
    return lambda params: torch.optim.SGD(params, lr=lr)


def slack(A, B, dA, dB, s):
    """Rounding of signal and drift: dA is a difference of numbers of A's size, so it is off by u·(|A| + |dA|), and the
    products of r terms by (r + 3)·u of their absolute sum, once on either side of a comparison."""
    size_A, size_B = A.norm() + dA.norm(), B.norm() + dB.norm()
    return 4 * (A.shape[0] + 3) * U * float(s * size_A * size_B)


@given(m=sizes, n=sizes, r=ranks, s=st.floats(1 / 64, 256), scale=st.floats(1e-4, 10), seed=seeds)
@example(m=1, n=1, r=1, s=64.0, scale=1.0, seed=0)
@example(m=3, n=7, r=2, s=64.0, scale=1.0, seed=0)
def test_signal_plus_drift_is_the_exact_change(m, n, r, s, scale, seed):
    """s·B·A changes by its derivative along the step, the signal, and a remainder, the drift: these are their norms."""
    A, B, dA, dB, _ = factors(m, n, r, seed)
    dA, dB = scale * dA, scale * dB
    _, derivative = torch.autograd.functional.jvp(lambda a, b: s * b @ a, (A, B), (dA, dB))
    remainder = s * (B + dB) @ (A + dA) - s * B @ A - derivative
    signal, drift, ratio = signal_drift(A, B, dA, dB, s)
    tol = slack(A, B, dA, dB, s)
    assert abs(signal - derivative.norm().item()) <= tol
    assert abs(drift - remainder.norm().item()) <= tol
    assert math.isclose(ratio, drift / signal, rel_tol=4 * U)


@given(m=sizes, n=sizes, r=ranks, seed=seeds)
def test_no_step_has_neither_signal_nor_drift(m, n, r, seed):
    """A step of zero has signal, drift and ratio 0, and with B = 0 and dA = 0 a first step has no drift."""
    A, B, dA, dB, _ = factors(m, n, r, seed)
    assert signal_drift(A, B, 0 * dA, 0 * dB, 64.0) == (0.0, 0.0, 0.0)
    signal, drift, ratio = signal_drift(A, 0 * B, 0 * dA, dB, 64.0)
    assert signal > 0 and drift == ratio == 0
    assert signal_drift(0 * A, 0 * B, dA, dB, 64.0)[2] == math.inf


@given(m=sizes, n=sizes, r=ranks, k=st.floats(1 / 64, 64), n_steps=st.integers(1, 3), seed=seeds)
@example(m=1, n=1, r=1, k=64.0, n_steps=1, seed=0)
@example(m=5, n=9, r=3, k=16.0, n_steps=3, seed=0)
def test_under_adam_alpha_leaves_the_ratio(m, n, r, k, n_steps, seed):
    """Under Adam and the same G, alpha → k·alpha multiplies signal and drift by k and leaves their ratio."""
    A, B, _, _, G = factors(m, n, r, seed)
    s, lr = 2.0, 0.01
    one, scaled = step(A, B, G, s, adam(lr), n_steps), step(A, B, G, k * s, adam(lr), n_steps)
    signal, drift, ratio = signal_drift(*one, s)
    signal_k, drift_k, ratio_k = signal_drift(*scaled, k * s)
    tol = 20 * n_steps * slack(*one, s)  # 20: Adam's own arithmetic, the moments, the root and the quotient
    assert abs(signal_k - k * signal) <= k * tol and abs(drift_k - k * drift) <= k * tol
    assert abs(ratio_k - ratio) <= tol * (1 + ratio) / (signal - tol)
    assert signal > 1e3 * tol  # the comparisons above say something


@given(m=sizes, n=sizes, r=ranks, k=st.floats(1 / 16, 16), seed=seeds)
@example(m=5, n=9, r=3, k=16.0, seed=0)
def test_under_adam_the_learning_rate_raises_the_ratio(m, n, r, k, seed):
    """Under Adam, eta → k·eta multiplies the signal by k and the drift by k², and so the ratio by k."""
    A, B, _, _, G = factors(m, n, r, seed)
    s, lr = 2.0, 0.01
    one, scaled = step(A, B, G, s, adam(lr)), step(A, B, G, s, adam(k * lr))
    signal, drift, ratio = signal_drift(*one, s)
    signal_k, drift_k, ratio_k = signal_drift(*scaled, s)
    tol = 20 * max(1, k * k) * (slack(*one, s) + slack(*scaled, s))
    assert abs(signal_k - k * signal) <= tol and abs(drift_k - k * k * drift) <= tol
    assert abs(ratio_k - k * ratio) <= tol * (1 + k * ratio) / (min(1, k) * signal - tol)


@given(m=sizes, n=sizes, r=ranks, k=st.floats(1 / 16, 16), seed=seeds)
@example(m=5, n=9, r=3, k=16.0, seed=0)
def test_under_sgd_alpha_raises_the_ratio_as_well(m, n, r, k, seed):
    """Under SGD the step grows with alpha too: alpha → k·alpha gives signal × k², drift × k³ and ratio × k."""
    A, B, _, _, G = factors(m, n, r, seed)
    s, lr = 2.0, 0.01
    one, scaled = step(A, B, G, s, sgd(lr)), step(A, B, G, k * s, sgd(lr))
    signal, drift, ratio = signal_drift(*one, s)
    signal_k, drift_k, ratio_k = signal_drift(*scaled, k * s)
    tol = 20 * max(1, k**3) * (slack(*one, s) + slack(*scaled, k * s))
    assert abs(signal_k - k**2 * signal) <= tol and abs(drift_k - k**3 * drift) <= tol
    assert abs(ratio_k - k * ratio) <= tol * (1 + k * ratio) / (min(1, k * k) * signal - tol)


def trace(alpha, B0, lr_A, lr_B, seed, clip=None, n_steps=50):
    """W0 + s·B·A after each of n_steps of AdamW in float64 on a small regression, from A0 of the seed and from B0."""
    m, n, r = 5, 9, 3
    g = torch.Generator().manual_seed(seed)
    W0, A0 = torch.randn(m, n, generator=g, dtype=torch.float64), torch.randn(r, n, generator=g, dtype=torch.float64)
    x, y = (torch.randn(20, width, generator=g, dtype=torch.float64) for width in (n, m))
    base = nn.Linear(n, m, bias=False, dtype=torch.float64)
    base.weight.data.copy_(W0)
    layer = LoRALinear(base, r, alpha, dtype=torch.float64)
    layer.lora_A.data.copy_(A0)
    layer.lora_B.data.copy_(B0)
    opt = torch.optim.AdamW([dict(params=[layer.lora_A], lr=lr_A), dict(params=[layer.lora_B], lr=lr_B)],
                            eps=0.0, weight_decay=0.0)
    weights = []
    for _ in range(n_steps):
        opt.zero_grad()
        (layer(x) - y).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(layer.parameters(), clip)
        opt.step()
        weights.append(W0 + layer.scaling * layer.lora_B.detach() @ layer.lora_A.detach())
    return torch.stack(weights)


@given(j=st.integers(-5, 5), seed=seeds)
@example(j=4, seed=0)
def test_alpha_is_the_ratio_of_lora_plus(j, seed):
    """alpha·k traces, bit for bit, LoRA+ (Hayou et al. 2024, arXiv:2402.12354) with B and its rate times k = 2^j.

    Adam with eps = 0 and no decay: powers of two commute with rounding, so not one bit of 50 steps differs.
    """
    k, lr, alpha = 2.0**j, 0.003, 6.0
    B0 = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled_alpha = trace(alpha * k, B0, lr, lr, seed)
    lora_plus = trace(alpha, k * B0, lr, k * lr, seed)
    assert torch.equal(scaled_alpha, lora_plus)
    assert scaled_alpha[-1].sub(scaled_alpha[0]).abs().max() > 1e-3  # the run went somewhere


def test_clipping_breaks_the_equivalence_with_lora_plus():
    """A global-norm clip at 1.0 weighs the two gradients together, and those of alpha·k are not those of LoRA+."""
    k, lr, alpha = 16.0, 0.003, 6.0
    B0 = 0.01 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(trace(alpha * k, B0, lr, lr, 0), trace(alpha, k * B0, lr, k * lr, 0))
    scaled_alpha = trace(alpha * k, B0, lr, lr, 0, clip=1.0)
    lora_plus = trace(alpha, k * B0, lr, k * lr, 0, clip=1.0)
    apart, moved = (scaled_alpha - lora_plus)[-1].norm(), (scaled_alpha[-1] - scaled_alpha[0]).norm()
    assert apart > 0.01 * moved  # rounding alone would be 1e-12


def test_alpha_is_not_one_shared_learning_rate():
    """alpha·k and a learning rate of k·eta for A and B alike end at weights far apart."""
    k, lr, alpha = 16.0, 0.003, 6.0
    B0 = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled_alpha, scaled_lr = trace(alpha * k, B0, lr, lr, 0), trace(alpha, k * B0, k * lr, k * lr, 0)
    assert (scaled_alpha[-1] - scaled_lr[-1]).norm() > 0.1 * (scaled_alpha[-1] - scaled_alpha[0]).norm()


@given(k=st.floats(1e-3, 1e3), size=st.floats(1e-4, 1e2), n_steps=st.integers(1, 5), seed=seeds)
@example(k=1e-3, size=1e-4, n_steps=1, seed=0)
def test_adamw_ignores_the_size_of_the_gradient(k, size, n_steps, seed):
    """AdamW's path under gradients k·g is that under g, but for what the loop's own eps adds.

    Step lr·m/(√v + eps) is lr·m/√v·(1 - eps/(√v + eps)), so eps moves it by less than lr·|m|/√v·eps/√v: for g and
    for k·g together lr·|m|/√v·(1 + 1/k)·eps/√v, with the moments m and v of g, worked out here.
    """
    g = torch.Generator().manual_seed(seed)
    gradients = size * torch.randn(n_steps, 20, generator=g, dtype=torch.float64)
    start = torch.randn(20, generator=g, dtype=torch.float64)
    lr, eps = 0.01, inspect.signature(train).parameters["eps"].default

    def run(factor):
        p = nn.Parameter(start.clone())
        opt = torch.optim.AdamW([p], lr=lr, eps=eps, weight_decay=0.0)
        for gradient in gradients:
            p.grad = factor * gradient
            opt.step()
        return p.detach()

    bound, m, v = torch.zeros(20, dtype=torch.float64), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        m_hat, root = m / (1 - 0.9**t), (v / (1 - 0.999**t)).sqrt()
        bound += lr * m_hat.abs() / root * (1 + 1 / k) * eps / root + 20 * U * (lr + start.abs() + 1)
    assert ((run(k) - run(1.0)).abs() <= bound).all()
