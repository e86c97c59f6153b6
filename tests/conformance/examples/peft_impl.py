"""PEFT behind the checks: python tests/conformance/run.py --impl tests/conformance/examples/peft_impl.py

The rule is PEFT's rsLoRA with lora_alpha = c; alpha given, it is plain LoRA. AdamW is torch's, the GPT transformers'.
"""

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def wrapped(W0, A, B, alpha, dtype=None, **options):
    """A PEFT model of one linear layer, called "0", and that layer; dtype: of W0, if not the array's."""
    base = nn.Linear(W0.shape[1], W0.shape[0], bias=False)
    base.weight.data = torch.tensor(W0, dtype=dtype)
    config = LoraConfig(r=A.shape[0], lora_alpha=alpha, target_modules=["0"], **options)
    model = get_peft_model(nn.Sequential(base), config)
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = torch.tensor(A), torch.tensor(B)
    return model, layer


def empty(rank, alpha, **options):
    zeros = [np.zeros(shape, np.float32) for shape in ((2, 3), (rank, 3), (2, rank))]
    return wrapped(*zeros, alpha, **options)[1]


def alpha_for_rank(rank, c):
    return empty(rank, c, use_rslora=True).scaling["default"] * rank


def lora_scaling(rank, alpha):
    return empty(rank, alpha).scaling["default"]


def lora_forward(x, W0, A, B, alpha):
    return wrapped(W0, A, B, alpha)[0](torch.tensor(x)).detach().numpy()


def lora_grads(x, W0, A, B, alpha, dy):
    model, layer = wrapped(W0, A, B, alpha)
    model(torch.tensor(x)).backward(torch.tensor(dy))
    return layer.lora_A["default"].weight.grad.numpy(), layer.lora_B["default"].weight.grad.numpy()


def merge(W0, A, B, alpha):
    return wrapped(W0, A, B, alpha)[0].merge_and_unload()[0].weight.detach().numpy()


def merge_bf16(W0, A, B, alpha, safe_merge=False):  # with safe_merge=True PEFT rounds s·B·A as well
    merged = wrapped(W0, A, B, alpha, torch.bfloat16)[0].merge_and_unload(safe_merge=safe_merge)
    return merged[0].weight.detach().float().numpy()


def signal_drift(A, B, dA, dB, scaling):
    def delta(A, B):
        W0 = np.zeros((B.shape[0], A.shape[1]), A.dtype)
        return wrapped(W0, A, B, scaling * A.shape[0])[1].get_delta_weight("default").detach()

    signal, drift = (delta(A, dB) + delta(dA, B)).norm().item(), delta(dA, dB).norm().item()
    return signal, drift, drift / signal


def optimize(parameters, loss, lr, beta1, beta2, eps, weight_decay):
    """The loss before each step of torch's AdamW; loss(t) is that of step t, from 0."""
    optimizer = torch.optim.AdamW(parameters, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    losses = []
    for t, rate in enumerate(lr):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        value = loss(t)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def adamw_steps(p, grads, lr, beta1, beta2, eps, weight_decay):
    p, seen = nn.Parameter(torch.tensor(p)), []

    def loss(t):
        seen.append(p.detach().numpy().copy())
        return (p * torch.tensor(grads[t])).sum()

    optimize([p], loss, lr, beta1, beta2, eps, weight_decay)
    return np.array([*seen[1:], p.detach().numpy()])


def train_linear(x, y, W0, A, B, alpha, lr, beta1, beta2, eps, weight_decay, steps):
    model, layer = wrapped(W0, A, B, alpha)
    x, y = torch.tensor(x), torch.tensor(y)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    losses = optimize([A, B], lambda t: F.mse_loss(model(x), y), lr[:steps], beta1, beta2, eps, weight_decay)
    return losses, A.detach().numpy(), B.detach().numpy()


def train_gpt(config, weights, adapter, alpha, idx, targets, lr, beta1, beta2, eps, weight_decay):
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    model.to(torch.tensor(weights["lm_head.weight"]).dtype)
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    rank = next(value for key, value in adapter.items() if "lora_A" in key).shape[0]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear",
                                             task_type="CAUSAL_LM"))
    found = set_peft_model_state_dict(model, {key: torch.tensor(value) for key, value in adapter.items()})
    assert not found.unexpected_keys
    idx, targets = torch.tensor(idx), torch.tensor(targets)

    def loss(t):
        return F.cross_entropy(model(idx[t]).logits.flatten(0, 1), targets[t].flatten())

    learnt = [p for p in model.parameters() if p.requires_grad]
    return optimize(learnt, loss, lr, beta1, beta2, eps, weight_decay)
