"""Twelve mistakes, each a small variation of numpy_only.py: {run.py's words for it: {function's name: function}}.

    from tests.conformance.run import check; check(PLANTED["drift without s"])  # False, and a line that says why
"""

import numpy as np

from tests.conformance.examples.numpy_only import adam_update, lora_grads, to_bf16


def forward_root(x, W0, A, B, alpha):
    return x @ W0.T + alpha / A.shape[0] ** 0.5 * (x @ A.T) @ B.T


def forward_exchanged(x, W0, A, B, alpha):
    return x @ W0.T + alpha / A.shape[0] * (x @ B.T) @ A.T


def forward_undivided(x, W0, A, B, alpha):
    return x @ W0.T + alpha * (x @ A.T) @ B.T


def grads_unscaled(x, W0, A, B, alpha, dy):
    return B.T @ dy.T @ x, lora_grads(x, W0, A, B, alpha, dy)[1]


def adamw_coupled(p, grads, lr, beta1, beta2, eps, weight_decay):
    m, v, seen = 0 * p, 0 * p, []
    for t, (g, rate) in enumerate(zip(grads, lr), 1):
        m, v, update = adam_update(m, v, g + weight_decay * p, t, beta1, beta2, eps)
        p = p - rate * update
        seen.append(p)
    return np.array(seen)


def adamw_uncorrected(p, grads, lr, beta1, beta2, eps, weight_decay):
    m, v, seen = 0 * p, 0 * p, []
    for g, rate in zip(grads, lr):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - rate * weight_decay * p - rate * m / (np.sqrt(v) + eps)
        seen.append(p)
    return np.array(seen)


def adamw_inside(p, grads, lr, beta1, beta2, eps, weight_decay):
    m, v, seen = 0 * p, 0 * p, []
    for t, (g, rate) in enumerate(zip(grads, lr), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - rate * weight_decay * p - rate * m / (1 - beta1**t) / np.sqrt(v / (1 - beta2**t) + eps)
        seen.append(p)
    return np.array(seen)


def merge_without_s(W0, A, B, alpha):
    return W0 + B @ A


def merge_rounded_twice(W0, A, B, alpha):
    return to_bf16(W0 + to_bf16(alpha / A.shape[0] * (B @ A)))


def drift_without_s(A, B, dA, dB, scaling):
    signal, drift = np.linalg.norm(scaling * (dB @ A + B @ dA)), np.linalg.norm(dB @ dA)
    return signal, drift, drift / signal


PLANTED = {
    "your s is alpha/sqrt(r)": {"lora_forward": forward_root},
    "A and B exchanged": {"lora_forward": forward_exchanged},
    "alpha not divided by r": {"lora_forward": forward_undivided},
    "weight decay coupled": {"adamw_steps": adamw_coupled},
    "bias correction missing": {"adamw_steps": adamw_uncorrected},
    "drift without s": {"signal_drift": drift_without_s},
    "c·r instead of c·sqrt(r)": {"alpha_for_rank": lambda rank, c: c * rank},
    "merge lost s": {"merge": merge_without_s},
    "gradient of A not scaled": {"lora_grads": grads_unscaled},
    "epsilon inside the root": {"adamw_steps": adamw_inside},
    "bf16 merge rounded twice": {"merge_bf16": merge_rounded_twice},
    "alpha fixed while rank changed": {"alpha_for_rank": lambda rank, c: c * 4},
}
