"""LoRA-alpha in numpy alone: python tests/conformance/run.py --impl tests/conformance/examples/numpy_only.py

W0 (m, n), A (r, n), B (m, r), x (N, n), y and dy (N, m). In a float32 run all arrays are float32.
"""

import numpy as np


def alpha_for_rank(rank, c):
    return c * rank**0.5


def lora_scaling(rank, alpha):
    return alpha / rank


def lora_forward(x, W0, A, B, alpha):
    return x @ W0.T + lora_scaling(A.shape[0], alpha) * (x @ A.T) @ B.T


def lora_grads(x, W0, A, B, alpha, dy):
    s, G = lora_scaling(A.shape[0], alpha), dy.T @ x
    return s * B.T @ G, s * G @ A.T


def adam_update(m, v, g, t, beta1, beta2, eps):
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    return m, v, m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)


def adamw_steps(p, grads, lr, beta1, beta2, eps, weight_decay):
    m, v, seen = 0 * p, 0 * p, []
    for t, (g, rate) in enumerate(zip(grads, lr), 1):
        m, v, update = adam_update(m, v, g, t, beta1, beta2, eps)
        p = p - rate * weight_decay * p - rate * update
        seen.append(p)
    return np.array(seen)


def merge(W0, A, B, alpha):
    return W0 + lora_scaling(A.shape[0], alpha) * (B @ A)


def to_bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)  # to nearest, ties to even


def merge_bf16(W0, A, B, alpha):
    return to_bf16(merge(W0, A, B, alpha))


def signal_drift(A, B, dA, dB, scaling):
    signal, drift = np.linalg.norm(scaling * (dB @ A + B @ dA)), np.linalg.norm(scaling * (dB @ dA))
    return signal, drift, drift / signal


def train_linear(x, y, W0, A, B, alpha, lr, beta1, beta2, eps, weight_decay, steps):
    losses, state = [], {"A": (0 * A, 0 * A), "B": (0 * B, 0 * B)}
    for t in range(1, steps + 1):
        difference = lora_forward(x, W0, A, B, alpha) - y
        losses.append((difference * difference).mean())
        dA, dB = lora_grads(x, W0, A, B, alpha, 2 * difference / difference.size)
        *state["A"], step_A = adam_update(*state["A"], dA, t, beta1, beta2, eps)
        *state["B"], step_B = adam_update(*state["B"], dB, t, beta1, beta2, eps)
        A = A - lr[t - 1] * weight_decay * A - lr[t - 1] * step_A
        B = B - lr[t - 1] * weight_decay * B - lr[t - 1] * step_B
    return np.array(losses), A, B
