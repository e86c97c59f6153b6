"""LoRALinear, inject_lora and merge_lora against the mathematics: python -m pytest tests/test_lora.py"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import train as script
from lora_alpha import GPT, GPTConfig, LoRALinear, alpha_for_rank, inject_lora, lora_layers, merge_lora, train

sizes, ranks, seeds = st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31)
alphas = st.floats(0.1, 2048)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
U64, U32, U_BF16 = 2.0**-53, 2.0**-24, 2.0**-8  # unit roundoffs: half the gap between 1 and the next number

# Rounding bound used below: a sum of K products is off by at most (K + 2)·u times the sum of their absolute values,
# whatever the order (Higham 2002, section 3.1), and a chain of such sums by the same with all its K added up.


def generator(seed):
    return torch.Generator().manual_seed(seed)


def linear(m, n, seed, dtype=torch.float64, bias=True):
    """An nn.Linear of n inputs and m outputs with normal weights."""
    base = nn.Linear(n, m, bias=bias, dtype=dtype)
    for p in base.parameters():
        p.data.copy_(torch.randn(p.shape, generator=generator(seed), dtype=torch.float64))
    return base


def adapted(m, n, r, alpha, seed, dtype=torch.float64, adapter_dtype=torch.float64):
    """A LoRALinear with normal weights everywhere, B included."""
    layer = LoRALinear(linear(m, n, seed, dtype), r, alpha, dtype=adapter_dtype)
    for i, p in enumerate([layer.lora_A, layer.lora_B]):
        p.data.copy_(torch.randn(p.shape, generator=generator(seed + 1 + i), dtype=torch.float64))
    return layer


def tiny_gpt(layers=2, tie=False, seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=layers,
                         num_attention_heads=2, max_position_embeddings=16, tie_word_embeddings=tie))


def tiny_batches(seed=0):
    g = generator(seed)
    while True:
        tokens = torch.randint(13, (4, 9), generator=g)
        yield tokens[:, :-1], tokens[:, 1:]


def randomise_adapters(model, seed=0):
    for layer in lora_layers(model).values():
        layer.lora_B.data.copy_(0.05 * torch.randn(layer.lora_B.shape, generator=generator(seed)))
    return model


def snapshot(model):
    """All there is to know of a model: classes, values, what is trainable, and which mode it is in."""
    return ([(name, type(module), module.training) for name, module in model.named_modules()],
            [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()])


def same(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) and all(
        p[:3] == q[:3] and torch.equal(p[3], q[3]) for p, q in zip(a[1], b[1]))


# ---- The start: A uniform, B zero, nothing changed -------------------------------------------------------------------


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, dtype=dtypes, seed=seeds)
@example(m=1, n=1, r=1, alpha=256.0, dtype=torch.float64, seed=0)
@example(m=3, n=7, r=16, alpha=1024.0, dtype=torch.bfloat16, seed=0)
def test_injection_changes_nothing_at_the_start(m, n, r, alpha, dtype, seed):
    """Before the first step the adapted model answers as the base does, bit for bit, and so does its merge."""
    model = nn.Sequential(linear(m, n, seed, dtype))
    x = torch.randn(5, n, generator=generator(seed + 1), dtype=torch.float64).to(dtype)
    before, weight = model(x), model[0].weight.detach().clone()
    inject_lora(model, r, alpha, targets=["0"])
    assert isinstance(model[0], LoRALinear) and model[0].lora_A.dtype == torch.float32
    assert torch.equal(model(x), before)
    assert torch.equal(merge_lora(model)[0].weight, weight)


@pytest.mark.parametrize("n", [5, 64, 2048])
def test_a_starts_uniform_and_b_starts_zero(n):
    """A ~ U(-1/√n, 1/√n), n the number of inputs, by a Kolmogorov-Smirnov test that errs once in 30 million; B is 0."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(n, 3), 50, 32.0)
    assert layer.lora_A.shape == (50, n) and layer.lora_B.shape == (3, 50) and not layer.lora_B.any()
    a = layer.lora_A.detach().double().flatten().sort().values
    cdf, N = (a * math.sqrt(n) + 1) / 2, a.numel()  # of U(-1/√n, 1/√n)
    assert cdf.min() >= -1e-6 and cdf.max() <= 1 + 1e-6
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    assert distance < 3 / math.sqrt(N)  # P(distance·√N > 3) <= 2·exp(-2·3²) = 3e-8 (Massart 1990)


def test_the_rule_is_the_default_and_the_output_head_is_left_alone():
    """Without alpha every linear layer but lm_head gets alpha = c·√r, here 512 at rank 4, and s = 128."""
    model = inject_lora(tiny_gpt(), rank=4)
    assert {(layer.alpha, layer.scaling) for layer in lora_layers(model).values()} == {(512.0, 128.0)}
    assert len(lora_layers(model)) == 2 * 7 and type(model.lm_head) is nn.Linear
    assert {layer.scaling for layer in lora_layers(inject_lora(tiny_gpt(), 4, c=10.0)).values()} == {5.0}


# ---- The forward pass, and merging -----------------------------------------------------------------------------------


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, seed=seeds)
@example(m=1, n=1, r=1, alpha=256.0, seed=0)
@example(m=3, n=7, r=2, alpha=1024.0, seed=0)
@example(m=2, n=3, r=6, alpha=64.0, seed=0)
def test_merged_equals_unmerged(m, n, r, alpha, seed):
    """The adapted layer, its merge, and x(W0 + (alpha/r)·B·A)ᵀ + b written out entry by entry are one function."""
    layer = adapted(m, n, r, alpha, seed)
    x = torch.randn(2, 5, n, generator=generator(seed + 3), dtype=torch.float64)
    W0, b, A, B = (p.detach().clone() for p in (layer.base.weight, layer.base.bias, layer.lora_A, layer.lora_B))
    W = W0 + torch.einsum("or,ri->oi", B, A) * alpha / r
    expected = torch.einsum("bti,oi->bto", x, W) + b
    size = x.abs() @ (W0.abs() + alpha / r * B.abs() @ A.abs()).T + b.abs()  # the sum of the absolute values
    tol = 2 * (n + r + 6) * U64 * size
    model = nn.Sequential(layer).eval()
    assert ((model(x) - expected).abs() <= tol).all()
    merge_lora(model)
    assert type(model[0]) is nn.Linear and not lora_layers(model)
    assert ((model[0].weight - W).abs() <= 2 * (r + 4) * U64 * (W0.abs() + alpha / r * B.abs() @ A.abs())).all()
    assert ((model(x) - expected).abs() <= tol).all()


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, seed=seeds)
@example(m=12, n=11, r=6, alpha=1.0, seed=0)
def test_a_bfloat16_merge_is_a_float32_merge_rounded_once(m, n, r, alpha, seed):
    """A bfloat16 base takes in s·B·A with one rounding to bfloat16 of a sum that was made in float32."""
    layer = adapted(m, n, r, alpha, seed, torch.bfloat16, torch.float32)
    W0, A, B = (p.detach().double() for p in (layer.base.weight, layer.lora_A, layer.lora_B))
    exact, size = W0 + alpha / r * B @ A, W0.abs() + alpha / r * B.abs() @ A.abs()
    merged = merge_lora(nn.Sequential(layer))[0].weight
    assert merged.dtype == torch.bfloat16
    in_float32 = (r + 4) * U32 * size
    assert ((merged.double() - exact).abs() <= U_BF16 * (exact.abs() + in_float32) + in_float32).all()


def test_a_merged_gpt_answers_as_the_adapted_one():
    """Merging every adapter of a GPT leaves its logits, to 1e-4 of their size in float32, and its names."""
    model = tiny_gpt()
    names = list(model.state_dict())
    randomise_adapters(inject_lora(model, 4))
    idx = torch.randint(13, (3, 10), generator=generator(1))
    adapted_logits = model(idx)[0]
    merged_logits = merge_lora(model)(idx)[0]
    assert list(model.state_dict()) == names
    assert (merged_logits - adapted_logits).abs().max() <= 1e-4 * adapted_logits.abs().max()  # 1e-4: 1,700·u, 15 layers
    assert (merged_logits - tiny_gpt()(idx)[0]).abs().max() > 0.1 * adapted_logits.abs().max()


def test_merging_twice_is_an_error():
    """A merge with no adapter left to merge raises a ValueError and changes nothing."""
    model = merge_lora(randomise_adapters(inject_lora(tiny_gpt(), 2)))
    before = snapshot(model)
    with pytest.raises(ValueError, match="no LoRA"):
        merge_lora(model)
    assert same(snapshot(model), before)


def test_changing_the_mode_changes_no_weight():
    """100 turns of train() and eval() leave every bit of every weight, and the answer."""
    model = randomise_adapters(inject_lora(tiny_gpt().bfloat16(), 2, dropout=0.1))
    idx = torch.arange(10)[None]
    before, logits = {k: v.clone() for k, v in model.state_dict().items()}, model.eval()(idx)[0]
    for _ in range(100):
        model.train()
        model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(idx)[0], logits)


def test_dropout_acts_on_the_adapter_in_training_alone():
    """Dropout never reaches the base, keeps the mean of the adapter's output, and is off in eval()."""
    layer = adapted(3, 40, 2, 2.0, 0)
    x = torch.randn(1, 40, generator=generator(9), dtype=torch.float64)
    plain = layer.eval()(x).detach()
    layer.dropout = 0.5
    assert torch.equal(layer.eval()(x), plain)
    torch.manual_seed(0)
    many = layer.train()(x.expand(40_000, -1)).detach()
    error = many.std(0) / math.sqrt(len(many))
    assert ((many.mean(0) - plain).abs() < 6 * error).all() and (error > 0).all()
    with torch.no_grad():
        layer.lora_B.zero_()
    assert torch.equal(layer(x), layer.base(x))


# ---- Gradients -------------------------------------------------------------------------------------------------------


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, seed=seeds)
@example(m=1, n=1, r=1, alpha=256.0, seed=0)
@example(m=3, n=7, r=2, alpha=1024.0, seed=0)
def test_gradients_are_those_of_the_chain_rule(m, n, r, alpha, seed):
    """∂L/∂B = s·G·Aᵀ and ∂L/∂A = s·Bᵀ·G with G = ∂L/∂W from autograd of a dense layer, and W0 and b get none."""
    layer, N = adapted(m, n, r, alpha, seed), 4
    x, T = (torch.randn(N, width, generator=generator(seed + 3), dtype=torch.float64) for width in (n, m))
    (T * layer(x)).sum().backward()
    A, B = layer.lora_A.detach(), layer.lora_B.detach()
    W = (layer.base.weight + alpha / r * B @ A).detach().requires_grad_()
    (T * F.linear(x, W)).sum().backward()
    G, size_G = W.grad, T.abs().T @ x.abs()  # size_G: the sum of the absolute values behind each entry of G
    gamma, s = 2 * (N + n + m + r + 6) * U64, alpha / r
    assert ((layer.lora_B.grad - s * G @ A.T).abs() <= gamma * s * size_G @ A.abs().T).all()
    assert ((layer.lora_A.grad - s * B.T @ G).abs() <= gamma * s * B.abs().T @ size_G).all()
    assert layer.base.weight.grad is None and layer.base.bias.grad is None


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, seed=seeds)
def test_the_first_gradient_of_a_is_zero_and_the_second_is_not(m, n, r, alpha, seed):
    """At B = 0 the gradient of A is exactly zero, which is no bug; after one step of B it is not."""
    torch.manual_seed(seed)
    layer = LoRALinear(linear(m, n, seed), r, alpha, dtype=torch.float64)
    opt = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=1e-3, weight_decay=0.0)
    x, y = (torch.randn(6, width, generator=generator(seed + 3), dtype=torch.float64) for width in (n, m))
    for expected in (False, True):
        opt.zero_grad()
        (layer(x) - y).square().sum().backward()
        assert bool(layer.lora_A.grad.any()) is expected and layer.lora_B.grad.any()
        opt.step()


def test_only_the_adapters_are_trained():
    """A and B of each adapter require a gradient and get one; nothing else does."""
    model = randomise_adapters(inject_lora(tiny_gpt(), 2))
    idx, targets = next(tiny_batches())
    model(idx, targets)[1].backward()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.lora_{x}" for name in lora_layers(model) for x in "AB"} and len(trainable) == 28
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trainable


@given(dtype=st.sampled_from([torch.float32, torch.bfloat16]), decay=st.sampled_from([0.0, 0.1]), seed=seeds)
def test_frozen_weights_do_not_move(dtype, decay, seed):
    """Three updates of the training loop, with or without weight decay, move no bit of a frozen weight."""
    model = tiny_gpt(layers=1, seed=seed).to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    inject_lora(model, 2)
    B0 = [layer.lora_B.detach().clone() for layer in lora_layers(model).values()]
    train(model, tiny_batches(seed), steps=3, lr=1e-3, weight_decay=decay)
    assert all(not torch.equal(layer.lora_B, B) for layer, B in zip(lora_layers(model).values(), B0))
    frozen = {name.replace(".base.", "."): p for name, p in model.named_parameters() if ".lora_" not in name}
    assert frozen.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in frozen.items())


@given(m=sizes, n=sizes, r=ranks, alpha=alphas, seed=seeds)
@example(m=12, n=11, r=2, alpha=1024.0, seed=0)
def test_the_change_has_at_most_the_rank(m, n, r, alpha, seed):
    """What merging adds to W0 has no more than r singular values above rounding."""
    layer = adapted(m, n, r, alpha, seed)
    W0, A, B = (p.detach() for p in (layer.base.weight, layer.lora_A, layer.lora_B))
    change = layer.merged_weight() - W0
    # A sum off by E in Frobenius norm has its singular values off by no more than E (Weyl).
    E = 2 * (r + 4) * U64 * (W0.abs() + alpha / r * B.abs() @ A.abs()).norm()
    values = torch.linalg.svdvals(change)
    assert (values[r:] <= E).all() and values[0] > E


# ---- Precision, the first step, and curvature ------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.bfloat16, 0.5, 0.8), (torch.float32, 0.0, 0.0)])
def test_a_bfloat16_adapter_loses_the_step(dtype, least, most):
    """One step of ±2e-5 leaves over half of A (n = 2048) where it was in bfloat16, and no entry of it in float32.

    bfloat16 numbers above 1/128 lie 6e-5 or more apart, so ±2e-5 is rounded away; A is U(-1/45, 1/45): 65% of it.
    """
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(2048, 8), 16, 1024.0, dtype=dtype)
    before = layer.lora_A.detach().clone()
    layer.lora_A.grad = torch.randn(before.shape, generator=generator(1)).to(dtype)
    torch.optim.AdamW([layer.lora_A], lr=2e-5, weight_decay=0.0).step()  # Adam's first step is ±lr
    assert least <= (layer.lora_A == before).double().mean().item() <= most


def first_step(m, n, r, alpha, lr, seed):
    """The layer, and rms(ΔW)/lr of AdamW's first step on it, from a loss with a random gradient."""
    torch.manual_seed(seed)
    layer = LoRALinear(linear(m, n, seed), r, alpha, dtype=torch.float64)
    start = script.first_step_ratio(nn.Sequential(layer))
    opt = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=lr, weight_decay=0.0)
    x, T = (torch.randn(64, width, generator=generator(seed + 3), dtype=torch.float64) for width in (n, m))
    (T * layer(x)).sum().backward()
    opt.step()
    eye = torch.eye(n, dtype=torch.float64)
    change = (layer(eye) - layer.base(eye)).detach()  # ΔWᵀ, by what the layer does
    return start, change.square().mean().sqrt().item() / lr


@pytest.mark.parametrize(("n", "r", "rule"), [(512, 1, 256.0), (512, 16, 256.0), (2048, 4, 256.0), (2048, 16, None),
                                              (1024, 64, None)])
def test_first_step_matches_the_prediction(n, r, rule):
    """AdamW's first step has rms(ΔW)/lr = (alpha/√r)/√(3n), which is 1, full fine-tuning's, at c = √(3n) for every r.

    B becomes ±lr, so a row of ΔW has (s·lr)²·σᵀAAᵀσ for its square, σ = ±1. AAᵀ has the mean I/3 and variances 4/(45n)
    on and 1/(9n) off the diagonal, so σᵀAAᵀσ·3/r is 1 with the variance (0.8/r + 2(r-1)/r)/n <= 2/n; its root has
    half that deviation. Five of those, and r/(πn) because σ is the sign of A's projection on a gradient.
    """
    c = rule or math.sqrt(3 * n)
    alpha = c * math.sqrt(r)
    predicted = (alpha / math.sqrt(r)) / math.sqrt(3 * n)
    assert rule or abs(predicted - 1) < 1e-12
    start, ratio = first_step(96, n, r, alpha, lr=1e-5, seed=r)
    bound = 2.5 * math.sqrt(2 / n) + r / (math.pi * n)
    assert abs(ratio / predicted - 1) < bound
    assert abs(start / predicted - 1) < 2.5 * math.sqrt(0.8 / (r * n))  # A's norm alone: r·n independent squares
    assert bound < 0.17  # enough to tell s = alpha/r from alpha/√r at r = 4 and more


@pytest.mark.parametrize("r", [1, 4, 16, 64])
def test_the_first_step_gains_alpha_times_the_rate_at_every_rank(r):
    """AdamW's first step lowers a loss whose gradient in W is G by alpha·lr times the mean of ‖G·a‖₁ over A's rows a:
    the rank cancels, though the step's size, (alpha/√r)/√(3n), has its root.

    B becomes -lr·sign(G·Aᵀ), so the loss changes by s·⟨G, B·A⟩ = -(alpha/r)·lr·Σ‖G·a‖₁. A normal G has a mean of
    m·√(2/π)·√(n·1/(3n)) for it, with a deviation of √(π/2 - 1)/√(r·m) of that, of which five.
    """
    m, n, alpha, lr = 512, 512, 300.0, 1e-5
    torch.manual_seed(r)
    layer = LoRALinear(linear(m, n, r), r, alpha, dtype=torch.float64)
    G = torch.randn(m, n, generator=generator(r + 1), dtype=torch.float64)
    opt = torch.optim.AdamW([layer.lora_A, layer.lora_B], lr=lr, eps=1e-12, weight_decay=0.0)
    eye, A = torch.eye(n, dtype=torch.float64), layer.lora_A.detach().clone()
    before = (G.T * layer(eye)).sum()
    before.backward()
    opt.step()
    gain = (before - (G.T * layer(eye)).sum()).item() / (alpha * lr)
    assert gain == pytest.approx((G @ A.T).abs().sum(0).mean().item(), rel=1e-6)
    expected = m * math.sqrt(2 / math.pi / 3)
    assert abs(gain / expected - 1) < 5 * math.sqrt((math.pi / 2 - 1) / (r * m))


def test_first_step_ratio_weighs_the_layers_by_their_size():
    """Over layers of different shapes the ratio is the root mean square over all adapted weights."""
    torch.manual_seed(0)
    model = nn.Sequential(LoRALinear(nn.Linear(300, 7), 4, 512.0), nn.ReLU(), LoRALinear(nn.Linear(50, 90), 4, 512.0))
    squares = weights = 0.0
    for layer in (model[0], model[2]):
        m, n = layer.base.weight.shape
        squares += m * n * (128.0**2 * 4 / (3 * n))  # (s·std(A)·√r)² with its expected std(A)
        weights += m * n
    assert abs(script.first_step_ratio(model) / math.sqrt(squares / weights) - 1) < 2.5 * math.sqrt(0.8 / 200)


@given(m=st.integers(1, 4), n=st.integers(1, 4), r=st.integers(1, 3), alpha=st.floats(0.5, 64), seed=seeds)
@example(m=2, n=3, r=1, alpha=64.0, seed=0)
def test_the_curvature_of_b_is_bounded_by_that_of_w(m, n, r, alpha, seed):
    """At B = 0 the Hessian of B is s²(A⊗I)H_W(Aᵀ⊗I), and so λmax(H_B) <= s²·σmax(A)²·λmax(H_W) for convex L(W)."""
    torch.manual_seed(seed)
    layer = LoRALinear(linear(m, n, seed), r, alpha, dtype=torch.float64)
    W0, b, A, s = layer.base.weight.detach(), layer.base.bias.detach(), layer.lora_A.detach(), alpha / r
    x = torch.randn(6, n, generator=generator(seed + 3), dtype=torch.float64)
    labels = torch.randint(m, (6,), generator=generator(seed + 4))

    def loss(y):
        return F.cross_entropy(y, labels) + y.square().mean()

    def of_b(B):
        return loss(torch.func.functional_call(layer, {"lora_B": B}, (x,)))

    H_B = torch.autograd.functional.hessian(of_b, torch.zeros(m, r, dtype=torch.float64)).reshape(m * r, m * r)
    H_W = torch.autograd.functional.hessian(lambda W: loss(F.linear(x, W, b)), W0).reshape(m * n, m * n)
    K = s * torch.kron(torch.eye(m, dtype=torch.float64), A)  # (m·r, m·n); the claim stacks columns, these are rows
    tol = 1e-12 * (1 + s * s * A.norm().item() ** 2 * H_W.norm().item())  # 1e-12: 9,000·u, for sums of up to 600 terms
    assert ((H_B - K @ H_W @ K.T).abs() <= tol).all()
    largest, bound = torch.linalg.eigvalsh(H_B)[-1], torch.linalg.eigvalsh(H_W)[-1]
    assert largest <= s**2 * torch.linalg.matrix_norm(A, 2) ** 2 * bound + tol


@pytest.mark.parametrize(("n", "r"), [(3, 1), (64, 4), (512, 16)])
def test_the_adapter_sees_r_over_3n_of_a_direction(n, r):
    """E‖Av‖² = r/(3n)·‖v‖² over A's initialisation, for a direction v that does not know A.

    (a·v)² has mean ‖v‖²/(3n) and, a uniform vector having no more kurtosis than a normal one, a variance of at most
    2·mean²: the mean of N·r of them is off by √(2/(N·r)) of itself, and five such deviations are allowed.
    """
    v = torch.randn(n, generator=generator(5), dtype=torch.float64)
    torch.manual_seed(0)
    base, N = nn.Linear(n, 2), 1000
    total = sum((LoRALinear(base, r, 1.0).lora_A.detach().double() @ v).square().sum().item() for _ in range(N))
    expected = r / (3 * n) * v.square().sum().item()
    assert abs(total / N / expected - 1) < 5 * math.sqrt(2 / (N * r))


# ---- What inject_lora refuses, and what a target names ---------------------------------------------------------------


@pytest.mark.parametrize(("kwargs", "words"), [
    (dict(rank=0), "rank"), (dict(rank=-1), "rank"), (dict(rank=1.5), "rank"), (dict(rank=math.nan), "rank"),
    (dict(rank=0, alpha=32.0), "rank"),
    (dict(rank=4, alpha=math.nan), "alpha"), (dict(rank=4, alpha=math.inf), "alpha"), (dict(rank=4, c=0.0), "c = "),
    (dict(rank=4, dropout=1.0), "dropout"), (dict(rank=4, dropout=-0.1), "dropout"),
    (dict(rank=4, dropout=math.nan), "dropout"),
    (dict(rank=4, targets=["q_proj", "query"]), "query"), (dict(rank=4, targets=["proj"]), "proj"),
    (dict(rank=4, targets=[]), "target"), (dict(rank=4, targets="q_proj"), "q_proj"),
    (dict(rank=4, targets=["embed_tokens"]), "embed_tokens"),
])
def test_a_refused_injection_leaves_the_model_untouched(kwargs, words):
    """A bad rank, alpha, c, dropout, or one target that names no linear layer: a ValueError, and nothing changed."""
    model = tiny_gpt()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        inject_lora(model, **kwargs)
    assert same(snapshot(model), before)


def test_a_second_injection_is_refused():
    """A model that has adapters takes no second set, under other targets neither, and keeps the first."""
    model = inject_lora(tiny_gpt(), 2, targets=["q_proj"])
    before = snapshot(model)
    with pytest.raises(ValueError, match="already"):
        inject_lora(model, 2, targets=["v_proj"])
    assert same(snapshot(model), before)


def test_a_tied_output_head_is_refused():
    """An lm_head that is the embedding cannot be a target; untied it can, and by default neither is adapted."""
    model = tiny_gpt(tie=True)
    before = snapshot(model)
    with pytest.raises(ValueError, match="lm_head"):
        inject_lora(model, 2, targets=["q_proj", "lm_head"])
    assert same(snapshot(model), before)
    assert type(inject_lora(model, 2).lm_head) is nn.Linear
    assert list(lora_layers(inject_lora(tiny_gpt(), 2, targets=["lm_head"]))) == ["lm_head"]


def test_names_in_a_list_match_whole_components():
    """A name matches whole components at the end of a path: layers.1 is not layers.11, and a part of a name nothing."""
    path = "model.layers.{}.{}"
    model = inject_lora(tiny_gpt(layers=12), 2, targets=["layers.1.mlp.up_proj", "q_proj"])
    expected = {path.format(1, "mlp.up_proj")} | {path.format(i, "self_attn.q_proj") for i in range(12)}
    assert lora_layers(model).keys() == expected
    model = nn.ModuleDict(dict(proj=nn.Linear(2, 2), q_proj=nn.Linear(2, 2), inner=nn.ModuleDict(
        dict(proj=nn.Linear(2, 2), xproj=nn.Linear(2, 2)))))
    assert lora_layers(inject_lora(model, 1, targets=["proj"])).keys() == {"proj", "inner.proj"}


def test_a_seed_fixes_every_a():
    """A's are drawn in the model's order, not in a set's, which differs from one Python process to the next."""
    model = tiny_gpt()
    torch.manual_seed(5)
    inject_lora(model, 2)
    torch.manual_seed(5)
    for layer in lora_layers(model).values():
        bound = layer.base.in_features**-0.5
        drawn = torch.empty_like(layer.lora_A).uniform_(-bound, bound)
        torch.testing.assert_close(layer.lora_A.data, drawn, rtol=1e-6, atol=0)


def test_a_string_is_a_regular_expression_for_the_whole_path():
    """A string must match from the first to the last character of a path."""
    model = inject_lora(tiny_gpt(layers=12), 2, targets=r"model\.layers\.1\.self_attn\.[qv]_proj")
    assert lora_layers(model).keys() == {f"model.layers.1.self_attn.{x}_proj" for x in "qv"}
    for part in (r"model\.layers\.1", r"\w_proj", r"self_attn\.q_proj"):
        with pytest.raises(ValueError, match="matches no linear layer"):
            inject_lora(tiny_gpt(), 2, targets=part)


@given(rank=ranks, c=st.floats(1, 512), seed=seeds)
def test_alpha_left_out_is_alpha_by_the_rule(rank, c, seed):
    """inject_lora(model, rank, c=c) is inject_lora(model, rank, alpha=c·√rank)."""
    models = [nn.Sequential(linear(3, 5, seed)) for _ in range(2)]
    for model, kwargs in zip(models, (dict(c=c), dict(alpha=c * math.sqrt(rank)))):
        torch.manual_seed(seed)
        randomise_adapters(inject_lora(model, rank, **kwargs), seed)
    x = torch.randn(2, 5, generator=generator(seed + 3), dtype=torch.float64)
    assert torch.equal(models[0](x), models[1](x))
    assert math.isclose(models[0][0].alpha, alpha_for_rank(rank, c), rel_tol=4 * U64)
