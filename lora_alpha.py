"""LoRA-α in one file: the rule alpha = c·√r, LoRA, a Llama-shaped GPT, and the AdamW loop.

LoRA freezes a weight W0 and learns a change of low rank r beside it:

    W = W0 + s·B·A,  s = alpha / r          W0 (out, in), A (r, in), B (out, r)

The habit is alpha = 2r and a raised learning rate. The finding of Zhang et al., "The Hidden Power of Scaling Factor
in LoRA Optimization" (arXiv:2606.12883), is that alpha is the better knob: let it grow as c·√r with a large c, and
keep the small learning rate of full fine-tuning. Comments mark who says what: [paper] is the paper's abstract,
[reported] what readers of its full text say, [derived] is worked out and tested here. A test that checks a
formula is named beside it. Read top to bottom: the rule → LoRA → the GPT → the AdamW loop.
"""

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

# ---- The rule --------------------------------------------------------------------------------------------------------


def alpha_for_rank(rank: int, c: float = 256.0) -> float:
    """alpha = c·√r: the best alpha is sublinear in the rank, a square root with a large coefficient [paper].

    c ≈ 256 was calibrated with AdamW on Llama models of 1B and 8B parameters, at full fine-tuning's learning rate,
    from a fresh initialisation [reported]. It is empirical: other rates, widths and optimizers want another c (measured
    in experiments/README.md). The same thing as rsLoRA (Kalajdzievski 2023) with its alpha set to c [derived].
    Checked by test_rule.py::test_four_times_the_rank_doubles_alpha. Raises ValueError for rank < 1 or a bad c.
    """
    if not (math.isfinite(c) and c > 0):
        raise ValueError(f"c = {c}: it must be a finite number above 0")
    return c * math.sqrt(_checked(rank))


def lora_scaling(rank: int, alpha: float) -> float:
    """s = alpha / r, the one multiplier of B·A: 2 by the habit alpha = 2r, c/√r under the rule (64 at r = 16).

    Everything that multiplies B·A takes s from here. Checked by test_rule.py::test_scaling_is_c_over_root_r.
    Raises ValueError for rank < 1 or an alpha that is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha = {alpha}: it must be a finite number")
    return alpha / _checked(rank)


def _checked(rank: int) -> int:
    if not math.isfinite(rank) or rank < 1 or rank != int(rank):
        raise ValueError(f"rank = {rank}: the rank must be a whole number, 1 or more")
    return int(rank)


# ---- LoRA ------------------------------------------------------------------------------------------------------------

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the output head


class LoRALinear(nn.Module):
    """y = x W0ᵀ + s·(x Aᵀ) Bᵀ with W0 frozen.  x (..., in), A (r, in), B (out, r), y (..., out).

    A and B are float32 whatever W0's dtype: in bfloat16 a step at full fine-tuning's learning rate is mostly rounded
    away [derived; test_lora.py::test_a_bfloat16_adapter_loses_the_step]. They are cast to x's dtype for the product.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, dtype=torch.float32):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.scaling = rank, alpha, lora_scaling(rank, alpha)
        self.dropout = dropout
        empty = dict(dtype=dtype, device=base.weight.device)
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, **empty))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, **empty))  # 0, so W = W0 at the start
        # PEFT's initialisation: A ~ U(-1/√in, 1/√in), variance 1/(3·in). c is calibrated to it.
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        A, B = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        h = F.linear(F.dropout(x, self.dropout, self.training), A) * self.scaling  # (..., r): s on the small tensor
        return self.base(x) + F.linear(h, B)  # (..., out): the product B·A, (out, in), is never formed

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W0 + s·B·A (out, in), computed in float32 or better and rounded once, to W0's dtype."""
        W0 = self.base.weight
        dtype = torch.promote_types(torch.promote_types(W0.dtype, self.lora_A.dtype), torch.float32)
        return torch.addmm(W0.to(dtype), self.lora_B.to(dtype), self.lora_A.to(dtype), alpha=self.scaling).to(W0.dtype)


def inject_lora(model: nn.Module, rank: int, alpha: float | None = None, c: float = 256.0, targets=ALL_LINEAR,
                dropout: float = 0.0, dtype=torch.float32) -> nn.Module:
    """Freezes the model and puts a LoRALinear in the place of every nn.Linear that targets names. Returns the model.

    alpha: None for the rule, alpha_for_rank(rank, c). targets, as in PEFT: "all-linear" (all but lm_head); a list of
    names, each matching whole components at the end of a path ("q_proj", "layers.1.mlp.up_proj"); or any other string,
    a regular expression for the whole path. dtype: of A and B; keep float32 unless you know better.
    Raises ValueError, the model untouched, for rank < 1, a non-finite alpha, a second injection, a dropout outside
    [0, 1), a single target that matches nothing, or a target whose weight is tied to another layer's.
    """
    alpha = alpha_for_rank(rank, c) if alpha is None else alpha
    lora_scaling(rank, alpha)  # raises for a bad rank or alpha
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: it must be at least 0 and below 1")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise ValueError("the model already has LoRA adapters: merge_lora them before injecting again")
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if isinstance(targets, str):
        pattern = r"(.*\.)?(?!lm_head$)[^.]+" if targets == ALL_LINEAR else targets
        hits = {targets: [name for name in linears if re.fullmatch(pattern, name)]}
    else:
        hits = {target: [name for name in linears if f".{name}".endswith(f".{target}")] for target in targets}
    unmatched = [target for target, names in hits.items() if not names] or ([] if hits else ["(none given)"])
    if unmatched:
        known = ", ".join(sorted({name.split(".")[-1] for name in linears}))
        raise ValueError(f"target {unmatched[0]!r} matches no linear layer; the layers are called {known} "
                         "(a list holds names, a string is a regular expression for the whole path)")
    chosen = [name for name in linears if any(name in names for names in hits.values())]  # in the model's order
    uses = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    for name in chosen:
        if uses.count(id(linears[name].weight)) > 1:
            raise ValueError(f"target {name!r} shares its weight with another layer (tied embeddings): leave it out")
    model.requires_grad_(False)
    for name in chosen:
        parent, _, child = name.rpartition(".")
        layer = LoRALinear(linears[name], int(rank), alpha, dropout, dtype)
        setattr(model.get_submodule(parent), child, layer.train(linears[name].training))
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Every adapter of the model by the path of the layer it stands in for."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def merge_lora(model: nn.Module) -> nn.Module:
    """Folds every adapter into its base weight, W0 ← W0 + s·B·A, and removes it. Returns the model, still frozen.

    Checked by test_lora.py::test_merged_equals_unmerged. Raises ValueError where there is nothing to merge.
    """
    layers = lora_layers(model)
    if not layers:
        raise ValueError("the model has no LoRA adapter to merge")
    for name, layer in layers.items():
        layer.base.weight.data.copy_(layer.merged_weight())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


@torch.no_grad()
def signal_drift(A: Tensor, B: Tensor, dA: Tensor, dB: Tensor, scaling: float) -> tuple[float, float, float]:
    """Frobenius norms of the signal and the drift of one step, and their ratio drift/signal (0 where both are 0).

    A step (A, B) → (A + dA, B + dB) moves s·B·A by  s·(dB·A + B·dA)  +  s·dB·dA  =  signal + drift.
    Under Adam alpha → k·alpha multiplies both by k and leaves the ratio; lr → k·lr multiplies the ratio by k. So alpha
    amplifies the signal without the drift that a larger learning rate brings: the claim is the paper's, these
    definitions and their proof are ours [derived; test_signal_drift.py::test_under_adam_alpha_leaves_the_ratio].
    A, dA (r, in); B, dB (out, r). Computed in float64.
    """
    A, B, dA, dB = (t.double() for t in (A, B, dA, dB))
    signal = (scaling * (dB @ A + B @ dA)).norm().item()
    drift = (scaling * (dB @ dA)).norm().item()
    return signal, drift, drift / signal if signal else (math.inf if drift else 0.0)


# ---- The GPT ---------------------------------------------------------------------------------------------------------
# Llama's architecture under Hugging Face's parameter names, so that a checkpoint loads without a renaming table.
# Shapes: B batch, T time (tokens), C hidden size, H query heads, K key/value heads, D head size, S cached tokens.


@dataclass
class GPTConfig:
    """Sizes and constants under the names of Hugging Face's config.json. None: derived from the others."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 688
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None  # fewer than attention heads: grouped-query attention
    head_dim: int | None = None
    max_position_embeddings: int = 1024  # the context, in tokens
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original_max_...
    attention_bias: bool = False  # a bias in q_proj, k_proj, v_proj (Qwen2.5)
    qk_norm: bool = False  # an RMSNorm over each head's q and k (Qwen3)
    tie_word_embeddings: bool = False  # lm_head is the embedding
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()  # every token that ends an answer

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings"):
            value = getattr(self, name)
            if name == "head_dim" and value is None:  # the sizes that it comes from are checked by now
                value = self.head_dim = self.hidden_size // self.num_attention_heads
            if type(value) is not int or not 0 < value < 2**31:
                raise ValueError(f"{name} = {value!r}: it must be a whole number, 1 or more")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads = {self.num_attention_heads} must be a multiple of "
                             f"num_key_value_heads = {self.num_key_value_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}: rotary embeddings need an even number")


def rope_tables(config: GPTConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (..., T, D) of the angles at positions (..., T). Always float32: bfloat16 cannot count to 257.

    Llama 3 stretches the slow waves by `factor`, leaves the fast ones and blends between (Llama 3.1's reference code).
    """
    D = config.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, D, 2, device=positions.device, dtype=torch.float32) / D)
    if scaling := config.rope_scaling:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        waves = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)  # turns in the old context
        blend = ((waves - low) / (high - low)).clamp(0, 1)  # 0: slow, stretched; 1: fast, kept
        frequency = (1 - blend) * frequency / scaling["factor"] + blend * frequency
    angles = positions[..., None].float() * frequency.repeat(2)  # (..., T, D): dimension i turns with i + D/2
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of x (B, heads, T, D) by its angle; q·k then depends on the distance alone."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        C, D, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.head_dim = D
        self.q_proj = nn.Linear(C, config.num_attention_heads * D, bias=bias)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=False)
        norm = nn.RMSNorm if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(D, eps=config.rms_norm_eps), norm(D, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rope, cache=None) -> Tensor:
        B, T, _ = x.shape
        q = rotate(self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2), *rope)  # (B, H, T, D)
        k = rotate(self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2), *rope)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        mask = None
        if cache is not None:
            keys, values, rows, positions, mask = cache  # (B, K, S, D) twice, (B, 1), (B, T), (B, 1, T, S)
            keys[rows, :, positions] = k.transpose(1, 2).to(keys.dtype)
            values[rows, :, positions] = v.transpose(1, 2).to(values.dtype)
            k, v = keys[:, :, : mask.shape[-1]], values[:, :, : mask.shape[-1]]
        grouped = k.shape[1] != q.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # SwiGLU (Shazeer 2020)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope, cache=None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """A Llama-shaped decoder. Token ids (B, T) in, logits (B, T, vocab_size) out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(dict(
            embed_tokens=nn.Embedding(config.vocab_size, config.hidden_size),
            layers=nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
            norm=nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps),
        ))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # GPT-2's initialisation: smaller where 2L outputs add up in the residual stream
                adds_up = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_hidden_layers) if adds_up else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.tie()

    def tie(self) -> None:
        """One matrix for embedding and lm_head where the config says so; call it again when weights are replaced."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _hidden(self, idx: Tensor, positions: Tensor, caches=None) -> Tensor:
        x = self.model.embed_tokens(idx)  # (B, T, C)
        rope = [table.to(x.dtype).unsqueeze(-3) for table in rope_tables(self.config, positions)]  # (1 or B, 1, T, D)
        for block, cache in zip(self.model.layers, caches or [None] * len(self.model.layers)):
            x = block(x, rope, cache)
        return self.model.norm(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, vocab_size) at every position, and the mean cross-entropy in nats, or None without targets.

        idx (B, T): token ids. targets (B, T): the next token at each position, -100 where there is nothing to learn;
        with no target at all the mean is NaN, as in torch. Raises ValueError where T exceeds the context.
        """
        T = idx.shape[1]
        if T > self.config.max_position_embeddings:
            raise ValueError(f"{T} tokens exceed the context of {self.config.max_position_embeddings}")
        logits = self.lm_head(self._hidden(idx, torch.arange(T, device=idx.device)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], max_new_tokens: int, stop: Iterable[int] = (),
                 temperature: float = 0.0, top_p: float = 1.0,
                 generator: torch.Generator | list[torch.Generator] | None = None,
                 each: Callable[[int, int], None] = lambda row, token: None) -> list[list[int]]:
        """New tokens for each prompt, in order, the stop token last where one was met; temperature 0 is greedy.

        A row also ends when it fills the context. each(row, token) is called as they come. top_p samples from the
        smallest set of tokens that holds that share of the probability. generator: a CPU torch.Generator, or one for
        each prompt, whose draws then do not depend on its batch mates. Prompts may differ in length: they are padded on
        the right, and every row has its own positions, so that padding, known by length and never by id, is overwritten
        before it could be seen. Checked by test_gpt.py::test_a_batch_answers_as_its_rows_alone.
        Raises ValueError for an empty prompt, or one longer than the context.
        """
        context, stop, device = self.config.max_position_embeddings, set(stop), self.model.embed_tokens.weight.device
        for i, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= context:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens: it must have 1 to {context} (the context)")
        if not (0 <= temperature < math.inf and 0 < top_p <= 1):
            raise ValueError(f"temperature = {temperature}, top_p = {top_p}: want 0 or more, and 0 < top_p <= 1")
        was_training = self.training
        self.eval()
        new = [[] for _ in prompts]
        generators = generator if isinstance(generator, list) else [generator] * len(prompts)
        alive = [i for i, prompt in enumerate(prompts) if len(prompt) < context and max_new_tokens > 0]
        longest = max((len(prompts[i]) for i in alive), default=0)
        S, K, D = min(context, longest + max(max_new_tokens, 0)), self.config.num_key_value_heads, self.config.head_dim
        kv = torch.zeros(len(self.model.layers), 2, len(alive), K, S, D, device=device,
                         dtype=self.model.embed_tokens.weight.dtype)  # every layer's keys and values
        idx = torch.tensor([prompts[i] + [0] * (longest - len(prompts[i])) for i in alive], device=device)  # (B, T)
        positions = torch.arange(longest, device=device).repeat(len(alive), 1)  # (B, T)
        last = torch.tensor([len(prompts[i]) - 1 for i in alive], device=device)  # (B,): each row's newest position
        while alive:
            rows = torch.arange(len(alive), device=device)
            S = int(positions.max()) + 1
            mask = torch.arange(S, device=device) <= positions[:, None, :, None]  # (B, 1, T, S): no key after its query
            x = self._hidden(idx, positions, [(k, v, rows[:, None], positions, mask) for k, v in kv])
            at = last if x.shape[1] > 1 else torch.zeros_like(last)  # after the prompt T is 1
            uniform = torch.stack([torch.rand((), generator=generators[i]) for i in alive]) if temperature else None
            tokens = sample(self.lm_head(x[rows, at]).float().cpu(), temperature, top_p, uniform)  # (B,)
            for i, token in zip(alive, tokens.tolist()):
                new[i].append(token)
                each(i, token)
            going = [n for n, i in enumerate(alive) if new[i][-1] not in stop and len(new[i]) < max_new_tokens
                     and len(prompts[i]) + len(new[i]) < context]
            if len(going) < len(alive):  # finished rows leave the batch
                kv = kv[:, :, going]
                last, tokens, alive = last[going], tokens[going], [alive[n] for n in going]
            last = last + 1
            idx, positions = tokens[:, None].to(device), last[:, None]
        self.train(was_training)
        return new


def sample(logits: Tensor, temperature: float, top_p: float, uniform: Tensor | None = None) -> Tensor:
    """One token for each row of logits (B, V): the likeliest at temperature 0, else that of the top_p nucleus which
    uniform (B,), a random number in [0, 1), falls on."""
    if temperature < torch.finfo(torch.float32).tiny:  # too small to divide by
        return logits.argmax(-1)
    probabilities, order = ((logits - logits.amax(-1, True)) / temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities  # the mass of all likelier tokens
    mass = probabilities.double().masked_fill(before >= max(top_p, 1e-9), 0.0).cumsum(-1)  # float64: u·mass < mass
    return order.gather(-1, (mass <= uniform[:, None] * mass[:, -1:]).sum(-1, keepdim=True))[:, 0]


# ---- The AdamW loop --------------------------------------------------------------------------------------------------


def collate(examples: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """idx and targets, both (B, T), of examples (ids, labels), padded to the longest; T is one less than its length.

    labels[t] is ids[t] where it is learnt and -100 elsewhere, Hugging Face's convention. targets are the labels one
    position on: the token after idx[t]. The padding's id (0) means nothing: attention is causal, so no token sees what
    stands to the right of it. Checked by test_loop.py::test_the_loss_counts_exactly_the_labels.
    """
    T = max((len(ids) for ids, _ in examples), default=2) - 1
    idx = torch.zeros(len(examples), T, dtype=torch.long)
    targets = torch.full((len(examples), T), -100)
    for row, (ids, labels) in enumerate(examples):
        idx[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, : len(ids) - 1] = torch.tensor(labels[1:])
    return idx, targets


POOL = 8  # updates sorted by length together: more saves padding, and makes each update's problems more alike


def epochs(examples: list, batch_size: int, grad_accum: int = 1, seed: int = 0, start: int = 0,
           share: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches without end, grad_accum of them an update, each epoch a new order without repeats.

    An epoch's random order is cut into pools of POOL updates, and each pool is sorted by length before it is cut into
    updates, so that little is padded; then the updates are shuffled. Too few examples for an update: all of them.
    start: updates to pass over, for a run that goes on: the seed and their number say where it was.
    share (k, n): of every micro-batch the examples k, k + n, k + 2n ...: one process's part, of n that train together.
    """
    generator = torch.Generator().manual_seed(seed)
    update, left = min(batch_size * grad_accum, len(examples)), []
    while True:
        order = left + torch.randperm(len(examples), generator=generator).tolist()
        whole = len(order) - len(order) % update
        updates, left = [order[:update]], order[whole:]  # the first finishes the epoch before, the last are left over
        for first in range(update, whole, POOL * update):
            pool = order[first : min(first + POOL * update, whole)]
            pool.sort(key=lambda i: len(examples[i][0]))
            updates += [pool[i : i + update] for i in range(0, len(pool), update)]
        for n in [0, *(1 + torch.randperm(len(updates) - 1, generator=generator)).tolist()]:
            start -= 1
            for i in range(grad_accum if start < 0 else 0):
                part = updates[n][i * update // grad_accum : (i + 1) * update // grad_accum]
                yield collate([examples[j] for j in part[share[0] :: share[1]]])


def learning_rate(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up over `warmup` updates, then half a cosine down to 0. step counts from 1."""
    if step <= warmup:
        return lr * step / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1)))


def summed(tensor: Tensor) -> Tensor:
    """The tensor, in place its sum over the processes that torch.distributed has started; alone it stays as it is."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean loss in nats over all targets of the batches (NaN for none), and of the other processes' where there are
    any; the model is left in the mode it was in."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    total, count = 0.0, 0
    for idx, targets in batches:
        n = int((targets != -100).sum())
        total += model(idx.to(device), targets.to(device))[1].item() * n if n else 0.0
        count += n
    model.train(was_training)
    total, count = summed(torch.tensor([total, count], dtype=torch.float64)).tolist()
    return total / count if count else math.nan


def train(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: int, lr: float, *, grad_accum: int = 1,
          warmup: int | None = None, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
          weight_decay: float = 0.0, grad_clip: float | None = None, lr_ratio: float = 1.0,
          val_batches: list | None = None, eval_every: int | None = None, drift: bool = False,
          metrics: str | Path | None = None, log: Callable[[dict], None] | None = None,
          autocast: torch.dtype | None = None, done: Iterable[dict] = (), state: dict | None = None,
          after: Callable[[list[dict], torch.optim.Optimizer], None] | None = None) -> list[dict]:
    """Trains every parameter that requires a gradient with AdamW for `steps` updates; returns a row of metrics each.

    batches: (idx, targets) as from epochs(), grad_accum of them an update, whose loss is the mean over all its targets,
    those of the batches of all processes where torch.distributed has several.
    warmup: updates, a tenth of steps by default. grad_clip: largest gradient norm, None for no clipping. lr_ratio: B's
    learning rate over A's: LoRA+, which does what alpha does [derived; test_peers.py::test_lora_plus_is_lora_alpha].
    A row: step (from 1), loss (of the update's batch, before it), val_loss (after it, every eval_every updates and at
    the end), lr, grad_norm (before clipping), clipped (0 or 1), tokens_per_s (padding included), seconds (since the
    start), and with drift the norms over all adapters of signal_drift. metrics: a CSV file that gets each row at once.
    log: called with each row. autocast: compute dtype where the weights are float32 and the products should not be.
    after: called with all rows and the optimizer after each update; what it keeps lets another call go on from there:
    with the weights, done (the rows), state (the optimizer's state_dict()["state"]) and batches from epochs(start=...).
    Raises FloatingPointError for a loss or gradient that is not finite, before the update, and for such final weights.
    """
    device = next(model.parameters()).device
    params = [p for p in model.parameters() if p.requires_grad]
    if not params or not 0 < lr_ratio < math.inf:
        raise ValueError(f"lr_ratio = {lr_ratio}: it must be a finite number above 0" if params else
                         "no parameter requires a gradient: inject_lora first, or model.requires_grad_(True)")
    # Weight decay, where asked for, is for matrices: norms and biases are left out, as in nanoGPT.
    layers = list(lora_layers(model).values())
    B = {layer.lora_B for layer in layers}
    groups = [dict(params=[p for p in params if p.dim() >= 2 and p not in B], weight_decay=weight_decay, lr_ratio=1.0),
              dict(params=[p for p in params if p in B], weight_decay=weight_decay, lr_ratio=lr_ratio),
              dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0, lr_ratio=1.0)]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr, betas, eps, fused=True)
    if state:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    warmup = max(1, steps // 10) if warmup is None else warmup
    columns = "step loss val_loss lr grad_norm clipped tokens_per_s seconds".split()
    columns += ["signal", "drift", "drift_ratio"] * drift

    def line(row: dict) -> str:
        return ",".join("" if row[name] is None else f"{row[name]:.8g}" for name in columns) + "\n"

    rows, batches = list(done), iter(batches)
    if metrics:
        Path(metrics).write_text(",".join(columns) + "\n" + "".join(map(line, rows)))
    began = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    model.train()
    for step in range(len(rows) + 1, steps + 1):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, lr, warmup) * group["lr_ratio"]
        optimizer.zero_grad(set_to_none=True)

        # Forward and backward. Each micro-batch counts by its targets, so any split of the update gives its mean.
        micro = list(itertools.islice(batches, grad_accum))
        counts = [int((targets != -100).sum()) for _, targets in micro]
        count, tokens = summed(torch.tensor([sum(counts), sum(idx.numel() for idx, _ in micro)])).tolist()
        if not count:
            raise ValueError(f"step {step}: no batch is left, or none has a target (all are -100): nothing to learn")
        loss = torch.zeros((), device=device)
        for (idx, targets), n in zip(micro, counts):
            if n:
                with torch.autocast(device.type, autocast, enabled=autocast is not None):
                    part = model(idx.to(device), targets.to(device))[1] * (n / count)
                part.backward()  # ∂L/∂B = s·G·Aᵀ, ∂L/∂A = s·Bᵀ·G with G = ∂L/∂W: s enters here and in the product
                loss += part.detach()
        if distributed.is_available() and distributed.is_initialized():
            # One sum of all gradients, for adapters are small. No DDP: no hooks, no buckets, and the mean stays exact.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            flat = summed(torch.cat([loss[None], *(grad.flatten() for grad in grads)]))
            loss = flat[0]
            for p, grad in zip(params, flat[1:].split([p.numel() for p in params])):
                p.grad = grad.view_as(p)

        # ∂L/∂B grows with s, so a clip of 1.0 would act at most steps: it is off unless asked for.
        norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if not (math.isfinite(loss) and math.isfinite(norm)):  # here the CPU waits for the GPU
            raise FloatingPointError(f"loss {loss:.4g}, gradient norm {norm:.4g} at step {step}, learning rate {lr:g}")
        clipped = grad_clip is not None and float(norm) > grad_clip
        if clipped:
            nn.utils.clip_grads_with_norm_(params, grad_clip, norm)

        # The update: Adam divides by the gradient's size, so s cancels in the step and the learning rate alone sets it.
        before = [(layer.lora_A.detach().clone(), layer.lora_B.detach().clone()) for layer in layers if drift]
        optimizer.step()

        row = dict(step=step, loss=loss.item(), val_loss=None, lr=learning_rate(step, steps, lr, warmup),
                   grad_norm=norm.item(), clipped=int(clipped), seconds=time.perf_counter() - began,
                   tokens_per_s=tokens / (time.perf_counter() - start))
        if drift:
            pairs = [signal_drift(A, B, layer.lora_A - A, layer.lora_B - B, layer.scaling)
                     for layer, (A, B) in zip(layers, before)]
            row["signal"], row["drift"] = math.hypot(*(p[0] for p in pairs)), math.hypot(*(p[1] for p in pairs))
            row["drift_ratio"] = row["drift"] / row["signal"] if row["signal"] else 0.0
        if val_batches and (step == steps or eval_every and step % eval_every == 0):
            row["val_loss"] = evaluate(model, val_batches)
        rows.append(row)
        if metrics:
            with open(metrics, "a") as file:
                file.write(line(row))
        if log:
            log(row)
        if after:
            after(rows, optimizer)
    if not all(bool(p.isfinite().all()) for p in params):
        raise FloatingPointError(f"weights that are not finite after step {steps}")
    return rows
