"""lora_alpha.py behind the checks: python tests/conformance/run.py --impl tests/conformance/examples/ours.py"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import lora_alpha  # noqa: E402
from lora_alpha import GPT, GPTConfig, LoRALinear, alpha_for_rank, inject_lora, lora_scaling, train  # noqa: E402, F401


def layer(W0, A, B, alpha, dtype=None):
    """A LoRALinear with these weights; dtype: of W0, if not the array's."""
    base = nn.Linear(W0.shape[1], W0.shape[0], bias=False)
    base.weight.data = torch.tensor(W0, dtype=dtype)
    adapted = LoRALinear(base, A.shape[0], alpha)
    adapted.lora_A.data, adapted.lora_B.data = torch.tensor(A), torch.tensor(B)
    return adapted


def lora_forward(x, W0, A, B, alpha):
    return layer(W0, A, B, alpha)(torch.tensor(x)).detach().numpy()


def lora_grads(x, W0, A, B, alpha, dy):
    adapted = layer(W0, A, B, alpha)
    adapted(torch.tensor(x)).backward(torch.tensor(dy))
    return adapted.lora_A.grad.numpy(), adapted.lora_B.grad.numpy()


def merge(W0, A, B, alpha):
    return layer(W0, A, B, alpha).merged_weight().numpy()


def merge_bf16(W0, A, B, alpha):
    return layer(W0, A, B, alpha, torch.bfloat16).merged_weight().float().numpy()


def signal_drift(A, B, dA, dB, scaling):
    return lora_alpha.signal_drift(*map(torch.tensor, (A, B, dA, dB)), scaling)


class Loss(nn.Module):
    """What train calls: (idx, targets) in, (None, loss) out. targets count what the loss is a mean of."""

    def __init__(self, inner, loss):
        super().__init__()
        self.inner, self.loss = inner, loss

    def forward(self, idx, targets):
        return None, self.loss(self.inner, idx, targets)


def run(model, batches, lr, beta1, beta2, eps, weight_decay, log=None):
    """lora_alpha.train, whose schedule with a warm-up of one step is the one that the vectors give."""
    rows = train(model, batches, len(lr), lr[0], warmup=1, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay,
                 log=log)
    assert np.allclose([row["lr"] for row in rows], lr, rtol=1e-6, atol=0), "another schedule"
    return np.array([row["loss"] for row in rows])


def adamw_steps(p, grads, lr, beta1, beta2, eps, weight_decay):
    matrix, seen = nn.Linear(p.shape[1], p.shape[0], bias=False), []
    matrix.weight.data = torch.tensor(p)
    model = Loss(matrix, lambda inner, g, _: (inner.weight * g).sum())  # its gradient is g
    run(model, [(torch.tensor(g), torch.zeros(1)) for g in grads], lr, beta1, beta2, eps, weight_decay,
        log=lambda row: seen.append(matrix.weight.detach().numpy().copy()))
    return np.array(seen)


def train_linear(x, y, W0, A, B, alpha, lr, beta1, beta2, eps, weight_decay, steps):
    adapted = layer(W0, A, B, alpha)
    model = Loss(adapted, lambda inner, x, y: F.mse_loss(inner(x), y))
    losses = []  # train keeps the loss in float32
    adapted.register_forward_hook(lambda _, inputs, out: losses.append(F.mse_loss(out, torch.tensor(y)).item()))
    run(model, [(torch.tensor(x), torch.tensor(y))] * steps, lr, beta1, beta2, eps, weight_decay)
    return losses, adapted.lora_A.detach().numpy(), adapted.lora_B.detach().numpy()


def train_gpt(config, weights, adapter, alpha, idx, targets, lr, beta1, beta2, eps, weight_decay):
    rank = adapter["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape[0]
    dtype = torch.tensor(weights["lm_head.weight"]).dtype
    model = GPT(GPTConfig(**config)).to(dtype)
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    inject_lora(model, rank, alpha, dtype=dtype)
    halves = {key.removeprefix("base_model.model.").removesuffix(".weight"): value for key, value in adapter.items()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.tensor(halves.pop(name))
    assert not halves
    return run(model, zip(torch.tensor(idx), torch.tensor(targets)), lr, beta1, beta2, eps, weight_decay)
