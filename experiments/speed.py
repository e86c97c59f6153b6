"""Time of a training step: LoRA here, PEFT + transformers, and full fine-tuning, at 25M parameters, 4 x 128 tokens.

    python experiments/speed.py                    three minutes on two cores

All three go through lora_alpha.train, in turn, so that other load on the machine slows each of them alike; the ratios
are of medians. Writes speed.csv (a line a timed step) and speed.png beside this file.
"""

import statistics
from pathlib import Path

import grid  # puts the modules above this folder on the path
import torch
from torch import nn

import lora_alpha
from eval_pass1 import Parser, plain_output, within
from hf import replacing
from lora_alpha import GPT, GPTConfig, inject_lora

CONFIG = dict(vocab_size=1024, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
              num_key_value_heads=8, rms_norm_eps=1e-5, max_position_embeddings=1024)
RANK = 16


class Peer(nn.Module):
    """transformers' Llama with PEFT's LoRA, called as GPT is."""

    def __init__(self, weights: dict):
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        llama = LlamaForCausalLM(LlamaConfig(**CONFIG, use_cache=False))
        llama.load_state_dict(weights)
        self.llama = get_peft_model(llama, LoraConfig(r=RANK, lora_alpha=1024, target_modules="all-linear"))

    def forward(self, idx, targets):
        logits = self.llama(input_ids=idx).logits
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--rounds", type=within(1), default=12, help="turns of each method (default: 12)")
    parser.add_argument("--steps", type=within(2), default=5, help="steps a turn, the first untimed (default: 5)")
    args = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    full = GPT(GPTConfig(**CONFIG))
    models = {"full fine-tuning": full}
    models["LoRA"] = GPT(GPTConfig(**CONFIG))
    models["LoRA"].load_state_dict(full.state_dict())
    inject_lora(models["LoRA"], RANK)
    models["PEFT + transformers"] = Peer(full.state_dict())
    for name, model in models.items():
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{name:20} {sum(p.numel() for p in model.parameters()):>12,} parameters, {trained:>12,} trained")
    tokens = torch.randint(CONFIG["vocab_size"], (4, 129))
    batch = tokens[:, :-1], tokens[:, 1:]

    rows = []
    for turn in range(args.rounds):
        for name, model in models.items():
            timed = lora_alpha.train(model, [batch] * args.steps, args.steps, 1e-5)[1:]
            rows += [dict(turn=turn, method=name, ms=1000 * tokens[:, 1:].numel() / row["tokens_per_s"])
                     for row in timed]
    with replacing(Path(__file__).with_suffix(".csv")) as path:
        grid.append(path, [dict(row, ms=f"{row['ms']:.3f}") for row in rows], ["turn", "method", "ms"])

    median = {name: statistics.median(row["ms"] for row in rows if row["method"] == name) for name in models}
    for name, ms in median.items():
        print(f"{name:20} {ms:7.1f} ms a step, {ms / median['full fine-tuning']:.3f} of full fine-tuning")
    fig, ax = plt.subplots(figsize=(6, 2.4))
    ax.boxplot([[row["ms"] for row in rows if row["method"] == name] for name in models], orientation="horizontal",
               tick_labels=list(models), showfliers=False)
    ax.set(xlabel=f"ms a step, {torch.get_num_threads()} CPU threads, float32", xlim=(0, None),
           title="25M parameters, rank 16, 4 x 128 tokens")
    fig.tight_layout()
    with replacing(Path(__file__).with_suffix(".png")) as path:
        fig.savefig(path, dpi=150, format="png")


if __name__ == "__main__":
    grid.stoppable(main)
