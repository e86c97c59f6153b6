"""Writes vectors/*.json, the right answers and what each wrong rule gives: python tests/conformance/make.py

The closed forms are written in numpy over decimal numbers of 50 digits and rounded once, to float64, so that no
machine's summation order, library or number of threads shows in a file. Only train_gpt.json comes from lora_alpha.py,
in float64, with its losses given to 11 digits. All arrays that go in but lr are exact in float32. README.md says what
each check means.
"""

import json
import random
import sys
from decimal import ROUND_HALF_EVEN, Decimal, getcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import lora_alpha  # noqa: E402
from tests.conformance.run import ROUNDOFF, rope_tables  # noqa: E402

getcontext().prec = 50
PI = Decimal("3.14159265358979323846264338327950288419716939937510582")
U32 = Decimal(ROUNDOFF["float32"])

# What the wrong rules are called. run.py prints these words.
ROOT, UNDIVIDED, LOST = "your s is alpha/sqrt(r)", "alpha not divided by r", "s lost: 1 stands in its place"
GRAD_A, GRAD_B = "gradient of A not scaled", "gradient of B not scaled"
COUPLED, BIAS, EPS = "weight decay coupled", "bias correction missing", "epsilon inside the root"
NO_DECAY, EARLY_EPS = "weight decay missing", "epsilon added before the bias correction"
RATE_FREE, BETAS = "weight decay not multiplied by the learning rate", "beta1 and beta2 exchanged"
TWICE = "bf16 merge rounded twice"


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def draw(rng, *shape, scale=1.0):
    """Multiples of scale/1024 between -2·scale and 2·scale, none of them 0; scale is a power of two."""
    numbers = [(1 + int(2048 * rng.random())) * (1 if rng.random() < 0.5 else -1) for _ in range(int(np.prod(shape)))]
    return np.array([Decimal(k * scale / 1024) for k in numbers], dtype=object).reshape(shape)


def zeros(*shape):
    return np.full(shape, Decimal(0), dtype=object)


def largest(array):
    return abs(np.asarray(array)).max()


def frobenius(array):
    return (array * array).sum().sqrt()


def cosine(x):
    total, term, k = Decimal(0), Decimal(1), 0
    while abs(term) > Decimal("1e-48"):
        total, k = total + term, k + 2
        term *= -x * x / (k * (k - 1))
    return total


def schedule(steps, peak):
    """The peak, then half a cosine down towards 0: lora_alpha.learning_rate with a warm-up of one step, in float64."""
    rates = [Decimal(peak) * (1 + cosine(PI * k / steps)) / 2 for k in range(1, steps)]
    return np.array([Decimal(float(rate)) for rate in [Decimal(peak), *rates]], dtype=object)


def to_bf16(x, rounding=ROUND_HALF_EVEN):
    """x rounded once to bfloat16's 8 significant bits."""
    if not x:
        return x
    step = Decimal(2) ** (int(np.frexp(float(x))[1]) - 8)
    return (x / step).quantize(Decimal(1), rounding) * step


def tie_distance(x):
    """How far x is from the nearest point at which its rounding to bfloat16 would turn the other way."""
    step = Decimal(2) ** (int(np.frexp(float(x))[1]) - 8)
    return abs((x / step) % 1 - Decimal(x > 0) / 2 + Decimal(x < 0) / 2) * step


bf16 = np.vectorize(to_bf16, otypes=[object])


def text(value, indent=""):
    """JSON with 17 significant digits, a row of numbers a line."""
    if isinstance(value, dict):
        inner = [f'{indent}  "{key}": {text(part, indent + "  ")}' for key, part in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    if isinstance(value, (list, tuple, np.ndarray)):
        parts = [text(part, indent) for part in value]
        deep = any(isinstance(part, (list, tuple, dict, np.ndarray)) for part in value)
        return "[" + (",\n" + indent if deep else ", ").join(parts) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, np.integer)):
        return str(value)
    digits = format(float(value), ".17g")
    return digits if set(digits) & set(".e") else digits + ".0"


def case(name, inputs, outputs, bound, mistakes, dtype=None):
    """bound: for each output, the largest error in units of the roundoff u, rounded up to two digits."""
    bound = {key: float(format(float(size) * 1.05, ".1e")) for key, size in bound.items()}
    return {"name": name, **({"dtype": dtype} if dtype else {}), "inputs": inputs, "outputs": outputs, "bound": bound,
            "mistakes": mistakes}


def write(folder, check, call, says, equation, tolerance, cases, roundoff=ROUNDOFF):
    head = {"check": check, "call": call, "says": says, "equation": equation, "tolerance": tolerance}
    Path(folder, f"{check}.json").write_bytes((text({**head, "roundoff": roundoff, "cases": cases}) + "\n").encode())


# ---- The closed forms ------------------------------------------------------------------------------------------------
# Shapes: N rows of x, W0 (m, n), A (r, n), B (m, r), x (N, n), y and dy (N, m). s is alpha / r.


def forward(x, W0, A, B, s):
    return x @ W0.T + s * (x @ A.T) @ B.T


def gradients(x, A, B, s, dy):
    G = dy.T @ x  # (m, n): the gradient of W = W0 + s·B·A
    return s * (B.T @ G), s * (G @ A.T)


def multipliers(rank, alpha, m, n, lost=LOST):
    """Wrong values of s by name."""
    rank, s = Decimal(rank), alpha / Decimal(rank)
    return {ROOT: alpha / rank.sqrt(), UNDIVIDED: alpha, lost: Decimal(1), "alpha left out: s is 1/r": 1 / rank,
            "s applied twice": s * s, "r is not A's first dimension but its second": alpha / n,
            "r is not A's first dimension but B's": alpha / m}


def adamw(p, m, v, g, t, lr, beta1, beta2, eps, weight_decay, wrong=None, noise=0):
    """Step t (from 1) of AdamW (Loshchilov and Hutter 2019): p, m, v after it. noise: relative, of the update."""
    decay = 0 if wrong in (COUPLED, NO_DECAY) else weight_decay if wrong == RATE_FREE else lr * weight_decay
    g = g + weight_decay * p if wrong == COUPLED else g
    beta1, beta2 = (beta2, beta1) if wrong == BETAS else (beta1, beta2)
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    c1, c2 = (1, 1) if wrong == BIAS else (1 - beta1**t, 1 - beta2**t)
    if wrong == EPS:
        update = m / c1 / np.sqrt(v / c2 + eps)
    elif wrong == EARLY_EPS:
        update = m / c1 / (np.sqrt(v) + eps) * c2**type(c2)("0.5")
    else:
        update = m / c1 / (np.sqrt(v / c2) + eps)
    return p - decay * p - lr * update * (1 + noise), m, v


def adam_roundings(hyper):
    """Roundings of one update, in units of u: some 20 operations, and 1 - beta, which loses 1/(1 - beta) of them."""
    return 20 + 1 / (1 - hyper["beta1"]) + 1 / (1 - hyper["beta2"])


def jitter(rng, array, size):
    """array, each number off by the relative size up or down."""
    signs = [1 if rng.random() < 0.5 else -1 for _ in range(array.size)]
    return array * (1 + size * np.array(signs, dtype=object).reshape(array.shape))


def train_linear(x, y, W0, A, B, s, hyper, wrong=None, noise=None, u=U32):
    """losses, A and B of AdamW on mean((y - target)²). noise: a generator of rounding errors in units of u."""
    losses, state, steps = [], [(zeros(*A.shape),) * 2, (zeros(*B.shape),) * 2], len(hyper["lr"])
    K = max(x.shape[0], *W0.shape, A.shape[0]) + 2
    for t in range(1, steps + 1):
        # A product of K terms is the exact product of factors that are changed by at most (K + 2)·u.
        W, a, b = (jitter(noise, p, K * u) for p in (W0, A, B)) if noise else (W0, A, B)
        difference = forward(x, W, a, b, s) - y
        losses.append((difference * difference).sum() / (1 if wrong == "loss is the sum, not the mean"
                                                         else x.shape[0] if wrong == "loss is the mean over rows alone"
                                                         else difference.size))
        dA, dB = gradients(x, a, b, s, 2 * difference / difference.size)
        dA, dB = dA / (s if wrong == GRAD_A else 1), dB / (s if wrong == GRAD_B else 1)
        size = adam_roundings(hyper) * u
        rest = [hyper[key] for key in ("beta1", "beta2", "eps", "weight_decay")]
        extra = [jitter(noise, zeros(*p.shape) + 1, size) - 1 if noise else 0 for p in (A, B)]
        A, *state[0] = adamw(A, *state[0], dA, t, hyper["lr"][t - 1], *rest, wrong, extra[0])
        B, *state[1] = adamw(B, *state[1], dB, t, hyper["lr"][t - 1], *rest, wrong, extra[1])
    return {"losses": np.array(losses, dtype=object), "A": A, "B": B}


# ---- The vectors -----------------------------------------------------------------------------------------------------


def make_rule(folder):
    cases = []
    for rank, c in [(1, 256.0), (4, 256.0), (8, 256.0), (16, 256.0), (64, 256.0), (256, 256.0), (3, 78.5), (50, 78.5)]:
        root, d = Decimal(rank).sqrt(), Decimal(c)
        wrong = {"c·r instead of c·sqrt(r)": d * rank, "alpha is 2r, the habit": Decimal(2 * rank), "c left out": root,
                 "c fixed at 256": 256 * root, "alpha rounded to a whole number": Decimal(round(d * root)),
                 "alpha cut to a whole number": Decimal(int(d * root)), "this is s, not alpha": d / root}
        cases.append(case(f"rank {rank}, c {c:g}", {"rank": rank, "c": c}, {"alpha": d * root},
                          {"alpha": 4 * d * root}, {label: {"alpha": value} for label, value in wrong.items()}))
    write(folder, "alpha_for_rank", "alpha_for_rank(rank, c) -> alpha",
          "alpha grows with the square root of the rank: 256, 512, 1024 at rank 1, 4, 16.", "alpha = c·sqrt(rank)",
          "4·u·alpha: a root, a product and a quotient each round once, and one to spare", cases)

    cases = []
    for rank, alpha in [(16, 1024.0), (8, 256 * 8**0.5), (16, 32.0), (7, 10.0), (64, 2048.0), (2, 361.0)]:
        a, r = Decimal(alpha), Decimal(rank)
        wrong = {ROOT: a / r.sqrt(), UNDIVIDED: a, "alpha divided by r as whole numbers": a // r,
                 "alpha left out: s is 1/r": 1 / r, "s fixed at 2": Decimal(2), "s is r/alpha": r / a,
                 "r fixed at 16": a / 16, "r fixed at 8": a / 8}
        cases.append(case(f"rank {rank}, alpha {alpha:.5g}", {"rank": rank, "alpha": alpha}, {"s": a / r},
                          {"s": 4 * a / r}, {label: {"s": value} for label, value in wrong.items()}))
    write(folder, "lora_scaling", "lora_scaling(rank, alpha) -> s", "The one multiplier of B·A is alpha over the rank.",
          "s = alpha / rank", "4·u·s: a quotient rounds once; a reciprocal and a product, twice", cases)


SHAPES = [("rank 4, alpha 256·sqrt(4)", 2, 7, 5, 4, 512.0), ("rank 3, alpha 256·sqrt(3)", 4, 5, 7, 3, 256 * 3**0.5),
          ("rank 6, alpha 12", 4, 8, 5, 6, 12.0)]  # name, N, m, n, r, alpha


def make_layer(folder):
    rng, forwards, backwards = random.Random(1), [], []
    for name, N, m, n, r, number in SHAPES:
        alpha = Decimal(number)
        s, x, W0, A, B = alpha / r, draw(rng, N, n), draw(rng, m, n), draw(rng, r, n, scale=0.25), draw(rng, m, r)
        right = forward(x, W0, A, B, s)
        wrong = {label: {"y": forward(x, W0, A, B, t)} for label, t in multipliers(r, alpha, m, n).items()}
        wrong |= {"B·A left out": {"y": x @ W0.T}, "W0 left out": {"y": right - x @ W0.T},
                  "s multiplies W0 too": {"y": s * forward(x, W0, A, B, Decimal(1))}}
        bound = {"y": (n + r + 8) * largest(forward(abs(x), abs(W0), abs(A), abs(B), s))}
        forwards.append(case(name, dict(x=x, W0=W0, A=A, B=B, alpha=alpha), {"y": right}, bound, wrong))

        dy = draw(rng, N, m)
        for start, b in (", B = 0", zeros(m, r)), ("", B):
            dA, dB = gradients(x, A, b, s, dy)
            wrong = {label: dict(zip(("dA", "dB"), gradients(x, A, b, t, dy)))
                     for label, t in multipliers(r, alpha, m, n).items()}
            wrong |= {GRAD_A: {"dA": dA / s, "dB": dB}, GRAD_B: {"dA": dA, "dB": dB / s},
                      "gradients divided by the number of rows": {"dA": dA / N, "dB": dB / N},
                      "gradients with the wrong sign": {"dA": -dA, "dB": -dB}}
            size_A, size_B = gradients(abs(x), abs(A), abs(b), s, abs(dy))
            bound = {"dA": (m + N + 8) * largest(size_A), "dB": (n + N + 8) * largest(size_B)}
            backwards.append(case(name + start, dict(x=x, W0=W0, A=A, B=b, alpha=alpha, dy=dy),
                                  {"dA": dA, "dB": dB}, bound, wrong))
    write(folder, "lora_forward", "lora_forward(x, W0, A, B, alpha) -> y",
          "The layer adds s times the adapter's product to the frozen layer's output, with r = A.shape[0].",
          "y = x W0^T + s·(x A^T) B^T, s = alpha / r",
          "(n + r + 8)·u times the largest entry of the same formula with absolute values: sums of n and of r products "
          "in a chain, s and the last addition", forwards)
    write(folder, "lora_grads", "lora_grads(x, W0, A, B, alpha, dy) -> (dA, dB)",
          "Both gradients carry s, and at B = 0 that of A is exactly 0; dy is the gradient of y.",
          "G = dy^T x, dA = s·B^T G, dB = s·G A^T",
          "(m + N + 8)·u for dA and (n + N + 8)·u for dB, times the largest entry of the same formula with absolute "
          "values: two sums in a chain, and s", backwards)


def make_adamw(folder):
    cases = []
    for seed, (name, peak, beta1, beta2, eps, decay, scale) in enumerate([
            ("torch's defaults, no decay", 0.01, 0.9, 0.999, 1e-8, 0.0, 1.0),
            ("weight decay 0.1", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0),
            ("small gradients, large epsilon, weight decay 0.02", 0.1, 0.8, 0.98, 0.001, 0.02, 1 / 32)]):
        rng = random.Random(seed)
        p, grads = draw(rng, 3, 4), draw(rng, 3, 3, 4, scale=scale)
        grads[:, 1, 2] = Decimal(0)  # nothing to learn here: 0 / (0 + eps) is 0
        hyper = {"lr": schedule(3, peak), "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": decay}
        rest = [Decimal(hyper[key]) for key in ("beta1", "beta2", "eps", "weight_decay")]

        def steps(wrong=None, p=p, grads=grads, lr=hyper["lr"], rest=rest):
            m, v, seen = zeros(3, 4), zeros(3, 4), []
            for t in 1, 2, 3:
                p, m, v = adamw(p, m, v, grads[t - 1], t, lr[t - 1], *rest, wrong)
                seen.append(p)
            return {"p": np.array(seen)}

        # The size of each update without cancellation in m: its error is adam_roundings·u of this.
        bound, M, v = largest(p) * 2 * 3, zeros(3, 4), zeros(3, 4)
        for t in 1, 2, 3:
            g = grads[t - 1]
            M, v = rest[0] * M + (1 - rest[0]) * abs(g), rest[1] * v + (1 - rest[1]) * g * g
            update = M / (1 - rest[0] ** t) / (np.sqrt(v / (1 - rest[1] ** t)) + rest[2])
            bound += hyper["lr"][t - 1] * largest(update) * Decimal(adam_roundings(hyper))
        wrong = [COUPLED, BIAS, EPS, NO_DECAY, EARLY_EPS, RATE_FREE, BETAS]
        cases.append(case(name, dict(p=p, grads=grads, **hyper), steps(), {"p": bound},
                          {label: steps(label) for label in wrong}))
    write(folder, "adamw_steps", "adamw_steps(p, grads, lr, beta1, beta2, eps, weight_decay) -> p after each step",
          "Three steps of AdamW from m = v = 0 with gradients grads[t] and learning rates lr[t]: decoupled weight "
          "decay, bias correction, eps outside the root.",
          "m = beta1·m + (1 - beta1)·g, v = beta2·v + (1 - beta2)·g^2, p = p - lr·weight_decay·p - "
          "lr·(m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), t = 1, 2, 3",
          "the sum over the steps of 2·u·|p| and (20 + 1/(1 - beta1) + 1/(1 - beta2))·u of the update: its operations, "
          "and what 1 - beta loses where beta is rounded", cases)


def make_merge(folder):
    rng, cases = random.Random(2), []
    for dtype in "float64", "float32":
        for name, _, m, n, r, number in SHAPES:
            alpha = Decimal(number)
            s, W0, A, B = alpha / r, draw(rng, m, n), draw(rng, r, n, scale=0.25), draw(rng, m, r)
            wrong = multipliers(r, alpha, m, n, lost="merge lost s")
            wrong = {label: {"W": W0 + t * (B @ A)} for label, t in wrong.items()}
            wrong |= {"W0 left out": {"W": s * (B @ A)}, "s·B·A subtracted": {"W": W0 - s * (B @ A)},
                      "B·A left out": {"W": W0}, "s multiplies W0 too": {"W": s * (W0 + B @ A)}}
            bound = {"W": (r + 6) * largest(abs(W0) + s * (abs(B) @ abs(A)))}
            cases.append(case(f"{name}, {dtype}", dict(W0=W0, A=A, B=B, alpha=alpha), {"W": W0 + s * (B @ A)}, bound,
                              wrong, dtype))
    write(folder, "merge", "merge(W0, A, B, alpha) -> W",
          "The merged weight is W0 plus s times B·A, in W0's dtype.", "W = W0 + s·B·A, s = alpha / r",
          "(r + 6)·u times the largest entry of |W0| + s·|B|·|A|: a sum of r products, s, an addition and the storage",
          cases)

    rng, cases = random.Random(5), []  # a seed that meets the two assertions
    for name, _, m, n, r, number in SHAPES:
        alpha = Decimal(number)
        s = alpha / r
        W0, A, B = bf16(draw(rng, m, n)), draw(rng, r, n, scale=2.0**-4), draw(rng, m, r, scale=2.0**-4)
        delta = s * (B @ A)
        error = (r + 6) * U32 * (abs(W0) + s * (abs(B) @ abs(A)))  # of a merge in float32, before it is rounded
        assert (np.vectorize(tie_distance)(W0 + delta) > error).all(), f"merge_bf16, {name}: an entry is a near tie"
        assert (np.vectorize(tie_distance)(delta) > error).all(), f"merge_bf16, {name}: an entry of s·B·A is a near tie"
        wrong = multipliers(r, alpha, m, n, lost="merge lost s")
        wrong = {label: {"W": bf16(W0 + t * (B @ A))} for label, t in wrong.items()}
        cut = np.vectorize(lambda x: to_bf16(x, "ROUND_DOWN"), otypes=[object])
        wrong |= {TWICE: {"W": bf16(W0 + bf16(delta))}, "bf16 merge rounded twice, B·A before s":
                  {"W": bf16(W0 + bf16(s * bf16(B @ A)))}, "A and B rounded to bf16 before the product":
                  {"W": bf16(W0 + s * (bf16(B) @ bf16(A)))}, "cut off instead of rounded to nearest":
                  {"W": cut(W0 + delta)}, "not rounded to bf16": {"W": W0 + delta}, "B·A left out": {"W": W0},
                  "s·B·A subtracted": {"W": bf16(W0 - delta)}, "W0 left out": {"W": bf16(delta)}}
        cases.append(case(name, dict(W0=W0, A=A, B=B, alpha=alpha), {"W": bf16(W0 + delta)}, {"W": 0}, wrong,
                          "float32"))
    write(folder, "merge_bf16", "merge_bf16(W0, A, B, alpha) -> W",
          "A bf16 weight is merged in float32 and rounded once, to nearest, ties to even: float32 arrays in (W0 holds "
          "bf16 values), the values that bf16 holds out.", "W = bf16(W0 + s·B·A), s = alpha / r",
          "0: every entry here is further from a rounding tie than (r + 6)·2^-24·(|W0| + s·|B|·|A|), float32's error",
          cases)


def make_signal_drift(folder):
    rng, cases = random.Random(4), []
    for name, _, m, n, r, number in SHAPES:
        s, A, B = Decimal(number) / r, draw(rng, r, n), draw(rng, m, r, scale=0.25)
        dA, dB = draw(rng, r, n, scale=2.0**-6), draw(rng, m, r, scale=2.0**-6)
        s = Decimal(float(np.float32(s)))
        for first in False, True:
            B, dA, name = (zeros(m, r), zeros(r, n), name + ", first step: B = 0, dA = 0") if first else (B, dA, name)
            inner, outer = frobenius(dB @ A + B @ dA), frobenius(dB @ dA)

            def three(signal, drift):
                return {"signal": signal, "drift": drift, "ratio": drift / signal}

            signal, drift = s * inner, s * outer
            wrong = {"drift without s": three(signal, outer), "signal without s": three(inner, drift),
                     "s left out of signal and drift": three(inner, outer),
                     "drift multiplied by s twice": three(signal, s * drift),
                     "squares of the norms": three(signal * signal, drift * drift),
                     "signal is dB·A alone": three(s * frobenius(dB @ A), drift),
                     "signal is the whole change, drift included":
                     three(s * frobenius(dB @ A + B @ dA + dB @ dA), drift)}
            if drift:
                wrong |= {"signal is B·dA alone": three(s * frobenius(B @ dA), drift),
                          "ratio is signal over drift": {**three(signal, drift), "ratio": signal / drift}}
            large = s * frobenius(abs(dB) @ abs(A) + abs(B) @ abs(dA)), s * frobenius(abs(dB) @ abs(dA))
            bound = {"signal": (2 * r + 3) * large[0] + (m * n + 2) * signal,
                     "drift": (r + 3) * large[1] + (m * n + 2) * drift}
            bound["ratio"] = (bound["signal"] * drift / signal + bound["drift"] + drift) / signal
            cases.append(case(name, dict(A=A, B=B, dA=dA, dB=dB, scaling=s), three(signal, drift), bound, wrong))
    write(folder, "signal_drift", "signal_drift(A, B, dA, dB, scaling) -> (signal, drift, ratio)",
          "A step (A, B) to (A + dA, B + dB) moves s·B·A by its signal, first order in the step, and its drift, the "
          "product of both: the Frobenius norms, and drift over signal.",
          "signal = |s·(dB·A + B·dA)|_F, drift = |s·dB·dA|_F, ratio = drift / signal",
          "(2r + 3)·u and (r + 3)·u of the norms with absolute values, (m·n + 2)·u of the result for the norm's own "
          "sum, and both for the ratio", cases)


def make_train_linear(folder):
    cases = []
    for seed, (name, N, m, n, r, number, peak, hyper, start) in enumerate([
            ("rank 4, alpha 256·sqrt(4), from B = 0", 8, 3, 5, 4, 512.0, 0.002, (0.9, 0.999, 1e-8, 0.0), 0),
            ("rank 2, alpha 256·sqrt(2), weight decay 0.5, epsilon 0.25", 7, 6, 4, 2, 256 * 2**0.5, 0.004,
             (0.8, 0.95, 0.25, 0.5), 1 / 256),
            ("rank 3, alpha 6, weight decay 0.1", 6, 4, 7, 3, 6.0, 0.05, (0.9, 0.99, 1e-8, 0.1), 1 / 16)]):
        rng, alpha = random.Random(seed), Decimal(number)
        s, x, y, W0 = alpha / r, draw(rng, N, n), draw(rng, N, m, scale=2.0), draw(rng, m, n, scale=0.5)
        A, B = draw(rng, r, n, scale=0.25), draw(rng, m, r, scale=start or 1) * (1 if start else 0)
        given = dict(zip(("beta1", "beta2", "eps", "weight_decay"), hyper), lr=schedule(20, peak))
        exact = {key: value if key == "lr" else Decimal(value) for key, value in given.items()}
        right = train_linear(x, y, W0, A, B, s, exact)
        bound = dict.fromkeys(right, Decimal(0))
        for u in U32, Decimal(ROUNDOFF["float64"]):
            for draws in range(8):
                noisy = train_linear(x, y, W0, A, B, s, exact, noise=random.Random(draws), u=u)
                bound = {key: max(bound[key], 4 * largest(noisy[key] - right[key]) / u) for key in right}
        wrong = {label: train_linear(x, y, W0, A, B, t, exact) for label, t in multipliers(r, alpha, m, n).items()}
        names = [COUPLED, BIAS, EPS, NO_DECAY, EARLY_EPS, RATE_FREE, BETAS, "loss is the sum, not the mean",
                 "loss is the mean over rows alone"]
        names += [GRAD_A, GRAD_B] if given["eps"] > 0.1 else []  # Adam hardly sees a gradient's size: eps alone does
        wrong |= {label: train_linear(x, y, W0, A, B, s, exact, label) for label in names}
        wrong["losses are those after the steps, not before"] = {**right, "losses": np.append(
            right["losses"][1:], ((forward(x, W0, right["A"], right["B"], s) - y) ** 2).sum() / y.size)}
        inputs = dict(x=x, y=y, W0=W0, A=A, B=B, alpha=alpha, lr=given["lr"],
                      **{key: given[key] for key in ("beta1", "beta2", "eps", "weight_decay")}, steps=20)
        cases.append(case(name, inputs, right, bound, wrong))
    write(folder, "train_linear",
          "train_linear(x, y, W0, A, B, alpha, lr, beta1, beta2, eps, weight_decay, steps) -> (losses, A, B)",
          "Twenty steps of a LoRA on one linear layer, the same batch (x, y) in each, AdamW as in adamw_steps on A and "
          "B: the loss before each step, and A and B after the last.",
          "loss = mean((x W0^T + s·(x A^T) B^T - y)^2) over all entries, s = alpha / r, learning rate lr[t]",
          "4 times the largest change, in 8 draws, of the trace when each factor of a product is off by (K + 2)·u, K "
          "the largest size, and each update as in adamw_steps: a rounded product is the exact one of such factors",
          cases)


GPT_CONFIG = {"vocab_size": 17, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 16,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}


def make_train_gpt(folder):
    """The tiny GPT of lora_alpha.py in float64. Its own loss is float32: it is computed here; main sees to RoPE."""
    rng, rank, alpha, steps = random.Random(5), 3, 256 * 3**0.5, 6
    hyper = {"beta1": 0.9, "beta2": 0.95, "eps": 0.05, "weight_decay": 0.5}
    rates = schedule(steps, 0.001)
    model = lora_alpha.inject_lora(lora_alpha.GPT(lora_alpha.GPTConfig(**GPT_CONFIG)), rank, alpha, dtype=torch.float64)
    model.double()
    base, adapter = {}, {}
    for name, parameter in model.named_parameters():
        scale = 2.0**-3 if "lora_A" in name else 2.0**-9 if "lora_B" in name else 2.0**-3
        value = draw(rng, *parameter.shape, scale=scale)
        value = 1 + value / 2 if "norm" in name else value
        if "lora_" in name:
            adapter[f"base_model.model.{name}.weight"] = value
        else:
            base[name.replace(".base.", ".")] = value
        parameter.data = torch.tensor(value.astype(np.float64))
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    learnt = [name for name in start if "lora_" in name]
    idx = np.array([int(17 * rng.random()) for _ in range(steps * 2 * 8)]).reshape(steps, 2, 8)
    idx[:, :, 1:5] = (5 * idx[:, :, :1] + [1, 8, 3, 12]) % 17  # something to learn
    targets = np.concatenate([idx[:, :, 1:], idx[:, :, :1]], axis=2)
    targets[:, 0, :2] = targets[:, 1, 6:] = -100  # a prompt and a padding

    def trace(s=None, wrong=None, noise=None):
        for layer in lora_alpha.lora_layers(model).values():
            layer.scaling = alpha / rank if s is None else float(s)
        clean = {name: value.clone() for name, value in start.items()}
        state = {name: (np.zeros(start[name].shape),) * 2 for name in learnt}
        losses = []
        for t in range(1, steps + 1):
            for name, parameter in model.named_parameters():
                parameter.data = clean[name].clone()
                if noise:  # a product of K terms, K at most 24, is the exact product of weights off by (K + 2)·u
                    signs = torch.randint(2, parameter.shape, generator=noise) * 2 - 1
                    parameter.data *= 1 + 26 * ROUNDOFF["float32"] * signs
                parameter.grad = None
            logits, _ = model(torch.tensor(idx[t - 1]))
            loss = F.cross_entropy(logits.flatten(0, 1), torch.tensor(targets[t - 1]).flatten())
            loss.backward()
            losses.append(float(format(loss.item(), ".10e")))
            gradient = {name: parameter.grad.numpy() for name, parameter in model.named_parameters() if name in learnt}
            for name in learnt:
                g = gradient[name] / (alpha / rank if wrong == GRAD_A and "lora_A" in name
                                      or wrong == GRAD_B and "lora_B" in name else 1)
                p, *state[name] = adamw(clean[name].numpy(), *state[name], g, t, float(rates[t - 1]), *hyper.values(),
                                        wrong)
                clean[name] = torch.tensor(p)
        return np.array(losses)

    right = trace()
    noisy = [trace(noise=torch.Generator().manual_seed(n)) for n in range(8)]
    bound = 4 * largest(np.array(noisy) - right) / ROUNDOFF["float32"]
    wrong = {label: trace(s) for label, s in multipliers(rank, Decimal(alpha), 1, 1).items()
             if "dimension" not in label}  # the layers have many shapes
    wrong["the adapter is not applied"] = trace(0)
    wrong |= {label: trace(wrong=label) for label in (COUPLED, BIAS, EPS, NO_DECAY, RATE_FREE, BETAS, GRAD_A, GRAD_B)}
    inputs = {"config": GPT_CONFIG, "weights": base, "adapter": adapter, "alpha": alpha, "idx": idx, "targets": targets,
              "lr": rates, **hyper}
    cases = [case("2 layers, 4 heads, 2 key/value heads, rank 3, alpha 256·sqrt(3)", inputs, {"losses": right},
                  {"losses": bound}, {label: {"losses": losses} for label, losses in wrong.items()})]
    write(folder, "train_gpt",
          "train_gpt(config, weights, adapter, alpha, idx, targets, lr, beta1, beta2, eps, weight_decay) -> losses",
          "Six steps of LoRA on a Llama-shaped GPT of two layers: the loss before each step; weights under Hugging "
          "Face's names, the adapter under PEFT's, on every linear layer but lm_head; batch idx[t], learning rate "
          "lr[t], AdamW as in adamw_steps on all A and B.",
          "loss = mean cross-entropy in nats of targets[t] (the token after each, already shifted; -100: not counted)",
          "u is 2^-24 in either mode, as many GPTs hold RoPE's tables and the loss in float32; 4 times the largest "
          "change, in 8 draws, of the trace when all weights are off by (K + 2)·u in each step, K = 24 the longest sum",
          cases, {"float64": ROUNDOFF["float32"], "float32": ROUNDOFF["float32"]})


def main(folder=HERE / "vectors"):
    Path(folder).mkdir(exist_ok=True)
    for make in (make_rule, make_layer, make_adamw, make_merge, make_signal_drift, make_train_linear):
        make(folder)
    tables = lambda config, positions: map(torch.tensor, rope_tables(vars(config), len(positions)))  # noqa: E731
    with patch.object(lora_alpha, "rope_tables", tables):  # the GPT's own are float32 in every dtype
        make_train_gpt(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
