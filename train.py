"""Fine-tunes a base model on problems, prompts, chats or texts, and shows what it says before and after.

    python train.py --rank 16                      LoRA-α on the small base and data/equations, two minutes on two cores
    python train.py --rank 16 --method lora        the same with the habit alpha = 2r
    python train.py --base MODEL --data FILE       a model folder or hub name; data/README.md lists the kinds of data
    python train.py merge --adapter FOLDER --out FOLDER                    folds an adapter into its base

Writes out/NAME/: a PEFT adapter with training.json (its base and prompt), metrics.csv, run.json (flags and results).
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: locked() does with the lock's machine and time
    fcntl = None

if __name__ == "__main__":  # torch takes seconds to import: Ctrl-C is one line then as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\ntrain.py: interrupted\n"), os._exit(130)))

import torch
from torch import distributed

from eval_pass1 import (Parser, Progress, base_sha256, check_paths, pick_base, plain_output, print_table, printable,
                        sha256_of, solve, summarize, weights_of)
from hf import (COPIED, check_tensors, layer_size, load_adapter, load_model, read_json, read_tensors, resolve,
                save_adapter, save_model, sync, targeted, write_json, write_tensors)
from lora_alpha import (ALL_LINEAR, GPT, alpha_for_rank, collate, epochs, evaluate, inject_lora, lora_layers,
                        lora_scaling, merge_lora, summed, train)
from problems import PROMPT, asking, chat_for, data_file, draw, encode_examples, encode_prompt, load_problems
from tokens import Encoding, begin_token, end_tokens, load_tokenizer

HERE = Path(__file__).resolve().parent
# torchrun starts WORLD processes; each of them trains on its share, and the first, RANK 0, alone prints and writes.
RANK, WORLD, LOCAL = ((int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
                      if distributed.is_available() and distributed.is_torchelastic_launched() else (0, 1, 0))


# ---- The flags -------------------------------------------------------------------------------------------------------


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    method = parser.add_argument_group("method")
    method.add_argument("--method", choices=["lora-alpha", "lora", "rslora", "lora+", "pissa", "full"],
                        default="lora-alpha", help="alpha = c·√r (default) | 2r | s = 16/√r | 2r, B at a larger rate | "
                        "r, from W0's principal singular vectors | full fine-tuning")
    method.add_argument("--rank", type=int, default=16, metavar="R", help="rank r of every adapter (default: 16)")
    method.add_argument("--alpha", type=float, metavar="A", help="alpha itself, in place of the method's rule")
    method.add_argument("--c", type=float, metavar="C", help="c of lora-alpha's rule alpha = c·√r (default: 256)")
    method.add_argument("--lr-ratio", type=float, metavar="K", help="B's learning rate over A's in lora+ (default: 16)")
    method.add_argument("--init", metavar="ADAPTER", help="adapter to go on training, with its rank, alpha and targets")
    method.add_argument("--targets", nargs="+", metavar="T",
                        help="layers to adapt: names (q_proj v_proj), or one regular expression for the whole path "
                             "(default: all-linear, every linear layer but lm_head)")
    method.add_argument("--dropout", type=float, default=0.0, metavar="P", help="on the adapters' input (default: 0)")

    loop = parser.add_argument_group("optimization")
    loop.add_argument("--lr", type=float, metavar="LR",
                      help="peak learning rate, full fine-tuning's (default: 1e-3 for data/base, 2e-5 for any other)")
    loop.add_argument("--steps", type=int, default=500, metavar="N", help="updates (default: 500)")
    loop.add_argument("--batch-size", type=int, default=16, metavar="N", help="examples a micro-batch (default: 16)")
    loop.add_argument("--grad-accum", type=int, default=1, metavar="N", help="micro-batches an update (default: 1)")
    loop.add_argument("--grad-clip", type=float, metavar="G", help="largest gradient norm (default: no clipping)")
    loop.add_argument("--weight-decay", type=float, default=0.0, metavar="W", help="AdamW's, on matrices (default: 0)")
    loop.add_argument("--seed", type=int, default=0, metavar="N", help="of A's init and the data's order (default: 0)")

    data = parser.add_argument_group("data and evaluation")
    data.add_argument("--base", metavar="MODEL", help="model folder or name on the hub (default: data/base)")
    data.add_argument("--data", default=str(HERE / "data/equations"), metavar="PATH",
                      help="folder with train.jsonl (val.jsonl, test.jsonl), or a JSONL file (default: data/equations)")
    data.add_argument("--max-length", type=int, metavar="N",
                      help="tokens of the longest example, longer ones are left out (default: the base's context)")
    data.add_argument("--truncate", action="store_true", help="cut longer examples at the end instead")
    data.add_argument("--val", metavar="FILE", help="validation data (default: val.jsonl, else up to 300 held out)")
    data.add_argument("--eval-every", type=int, metavar="N",
                      help="updates from one validation to the next (default: steps/4)")
    data.add_argument("--eval-problems", type=int, default=500, metavar="N",
                      help="test problems for pass@1, or 0 (default: 500)")

    run = parser.add_argument_group("run")
    run.add_argument("--out", metavar="FOLDER", help="where the run goes (default: the next free name under out/)")
    run.add_argument("--overwrite", action="store_true", help="replace a finished run in --out")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out; its flags are read back")
    run.add_argument("--checkpoint-every", type=int, metavar="N",
                     help="updates between checkpoints for --resume (default: every 10 minutes)")
    run.add_argument("--merge", action="store_true", help="also write the merged model folder, as OUT/merged")
    run.add_argument("--drift", action="store_true", help="also log signal, drift and their ratio at every step")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                     help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    run.add_argument("--dtype", choices=["float32", "bfloat16"],
                     help="of the base; adapters are float32 (default: bfloat16 on cuda, float32 on cpu)")
    run.add_argument("--compile", action="store_true", help="torch.compile the model")
    run.add_argument("--shard", action="store_true",
                     help="split the frozen weights over the processes: for a base that no GPU holds alone")
    return parser


def parse_args(argv=None) -> tuple[Parser, argparse.Namespace]:
    """The parser, for errors found later, and the flags, checked each by itself and against each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.resume:
        take_flags(parser, args)

    def flag(name):
        return f"--{name.replace('_', '-')} {getattr(args, name)}"

    for name, low in dict(rank=1, steps=1, batch_size=1, grad_accum=1, eval_problems=0, eval_every=1,
                          max_length=2, checkpoint_every=1).items():
        value = getattr(args, name)
        if value is not None and not low <= value <= 10**9:
            parser.error(f"{flag(name)}: it must be {low} or more, and 10**9 at most")
    for name in ("lr", "alpha", "c", "grad_clip", "lr_ratio"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            parser.error(f"{flag(name)}: it must be a finite number above 0")
    if not (math.isfinite(args.weight_decay) and args.weight_decay >= 0):
        parser.error(f"{flag('weight_decay')}: it must be a finite number, 0 or more")
    if not 0 <= args.seed < 2**32:  # torch's generator on the CPU takes no more bits
        parser.error(f"{flag('seed')}: it must be from 0 to 2**32 - 1")
    if args.alpha is not None and args.c is not None:
        parser.error("--alpha and --c: give one of them, c is there to compute alpha")
    if args.c is not None and args.method != "lora-alpha":
        parser.error(f"--c belongs to --method lora-alpha, not to {args.method}")
    if args.lr_ratio is not None and args.method != "lora+":
        parser.error(f"--lr-ratio belongs to --method lora+, not to {args.method}")
    if args.method == "full" and (args.alpha is not None or args.merge or args.drift):
        parser.error("--method full has no adapter: leave out --alpha, --merge and --drift")
    if args.shard and (WORLD == 1 or args.method in ("full", "pissa") or args.merge or args.compile):
        parser.error("--shard needs torchrun with several processes, a method that leaves the base as it is, and "
                     "neither --merge nor --compile")
    if args.shard and args.batch_size < WORLD:
        parser.error(f"--batch-size {args.batch_size}: --shard needs {WORLD} or more, an example for each process")
    if args.init is not None:
        take_init(parser, args)
    args.base, args.targets = args.base or str(HERE / "data/base"), args.targets or [ALL_LINEAR] * (args.init is None)
    if args.lr is None:  # larger models are fine-tuned at smaller rates
        args.lr = 1e-3 if Path(args.base).resolve() == HERE / "data/base" else 2e-5
    return parser, args


def take_init(parser: Parser, args) -> None:
    """Rank, dropout and, where none is given, the base of the adapter --init. A flag that says otherwise is refused."""
    try:
        if args.method in ("pissa", "full"):
            raise ValueError(f"--method {args.method} begins anew: leave out --init, or choose another method")
        folder = resolve(args.init, "--init")
        config = read_json(folder / "adapter_config.json")
        rank, alpha = layer_size({name: config.get(name) for name in ("r", "lora_alpha", "use_rslora")}, "")
        own = {"rank": rank, "alpha": alpha, "dropout": config.get("lora_dropout") or 0.0}
        asked = {name: getattr(args, name) for name in ("rank", "dropout") if name in parser.given}
        if {"alpha", "c"} & parser.given:
            asked["alpha"] = method_alpha(args.method, rank, args.alpha, args.c)
        for name, value in asked.items():
            if not math.isclose(value, own[name]):
                raise ValueError(f"{name} {value:g} is asked for, --init {args.init} has {own[name]:g}: leave it out")
        args.rank, args.dropout = rank, own["dropout"]
        args.base, _ = pick_base(args.base, {args.init: folder})
    except (ValueError, OSError) as error:
        parser.error(error)


# ---- The methods -----------------------------------------------------------------------------------------------------


def method_alpha(method: str, rank: int, alpha: float | None, c: float | None) -> float:
    """alpha of the multiplier s = alpha/r that a method and its flags ask for (the README says whose each is)."""
    if method == "lora-alpha":
        return alpha_for_rank(rank, c or 256.0) if alpha is None else alpha
    if method == "rslora":  # its own alpha is divided by √r, not by r
        return (16.0 if alpha is None else alpha) * math.sqrt(rank)
    if method == "pissa":
        return float(rank) if alpha is None else alpha
    return 2.0 * rank if alpha is None else alpha


def first_step_ratio(model) -> float:
    """rms(ΔW)/lr of Adam's first step, over all adapted weights; full fine-tuning's is 1 [derived].

    It makes every entry of B ±lr, so each row of ΔW = s·B·A has the mean square (s·lr)²·‖A‖²/in: by A's initialisation,
    a ratio of (alpha/√r)/√(3·in). Checked by test_lora.py::test_first_step_matches_the_prediction.
    """
    layers = lora_layers(model).values()
    squares = sum(layer.base.out_features * (layer.scaling * layer.lora_A.norm().item()) ** 2 for layer in layers)
    return math.sqrt(squares / sum(layer.base.weight.numel() for layer in layers))


@torch.no_grad()
def pissa_init(model) -> dict[str, tuple]:
    """PiSSA (Meng et al. 2024): the r principal singular directions of W0 move from the base into A and B.

    W0 - s·B·A stays frozen, in W0's dtype. Returns {layer: (W0, A, B)}, for pissa_to_lora.
    """
    start = {}
    for name, layer in lora_layers(model).items():
        W0, r, s = layer.base.weight.data, layer.rank, layer.scaling
        if r > min(W0.shape):
            raise ValueError(f"--rank {r}: PiSSA takes at most {min(W0.shape)} here, the singular vectors of {name}")
        U, S, Vh = torch.linalg.svd(W0.to(layer.lora_A.dtype), full_matrices=False)
        root = (S[:r] / s).sqrt()
        layer.lora_A.copy_(root[:, None] * Vh[:r])  # (r, in)
        layer.lora_B.copy_(U[:, :r] * root)  # (out, r)
        layer.base.weight.data = (W0 - s * layer.lora_B @ layer.lora_A).to(W0.dtype)
        start[name] = W0, layer.lora_A.clone(), layer.lora_B.clone()
    return start


@torch.no_grad()
def pissa_to_lora(model, start: dict[str, tuple]) -> None:
    """An ordinary adapter on W0, of twice the rank: s·(B·A - B0·A0) = s·[B, -B0]·[A; A0]."""
    for name, layer in lora_layers(model).items():
        W0, A0, B0 = start[name]
        layer.base.weight.data, layer.rank, layer.alpha = W0, 2 * layer.rank, 2 * layer.alpha
        layer.lora_A = torch.nn.Parameter(torch.cat([layer.lora_A, A0]))
        layer.lora_B = torch.nn.Parameter(torch.cat([layer.lora_B, -B0], dim=1))


# ---- The run, step by step -------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What is trained, on what, where. problems: of pass@1; shown: one to show where there are none."""

    base: Path  # its folder
    model: GPT
    encoding: Encoding
    device: torch.device
    dtype: torch.dtype  # of the base, or of full fine-tuning's products
    base_parameters: int
    examples: list[tuple]
    share: tuple[int, int]  # (k, n): this process evaluates every nth from the kth on
    val_batches: list[tuple]
    n_val: int
    problems: list[dict]
    n_tests: int  # of which the problems are drawn
    shown: list[dict]
    question: str  # a short one of the data, to be asked next
    asked: dict  # how a question is put: training.json's prompt and system
    noun: str  # what they are called
    chat: object  # the base's chat template, None where no data are messages


@dataclass
class Method:
    """What the flags ask of the adapters; for full fine-tuning alpha, s and first_step are None."""

    alpha: float | None = None
    s: float | None = None
    lr_ratio: float = 1.0
    first_step: float | None = None  # rms(ΔW)/lr of it
    start: dict | None = None  # what PiSSA began with


def main(argv=None):
    started = time.time()
    plain_output()
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["merge"]:
        return merge(argv[1:])
    parser = make_parser()
    with contextlib.ExitStack() as stack:  # the processes' group, the folder's lock
        stack.callback(join())
        # Everything that a user's mistake can break happens here, before anything is written.
        args = together(parser, lambda: parse_args(argv)[1], alone=True)
        base = together(parser, lambda: resolve(args.base, "--base"), alone=True)
        together(parser, lambda: check_out(args, base.resolve()), alone=True)
        run = together(parser, lambda: load(args, base))
        method = together(parser, lambda: adapt(args, run.model))
        final, folder = together(parser, lambda: claim_folder(args, base.resolve(), stack), alone=True)
        state = together(parser, lambda: load_checkpoint(args, run, folder / CHECKPOINT) if args.resume else None)
        try:
            finetune(parser, args, run, method, state, argv, final, folder, started)
        except (OSError, MemoryError, RuntimeError) as error:  # a full disk: no mistake of ours, no traceback
            said = str(error).splitlines()[0]
            if isinstance(error, RuntimeError) and WORLD > 1 and re.search("gloo|NCCL|onnection", said):
                said = "another one of the processes has ended, or cannot be reached"
            elif isinstance(error, RuntimeError) and not re.search("memory", said):
                raise
            parser.error(f"{said}. {how_to_go_on(final, folder)}")


def finetune(parser, args, run: Run, method: Method, state, argv, final: Path, folder: Path, started: float) -> None:
    """Before, training, after, and what they came to, in the run's folder."""
    announce(args, run, method)
    asked = len(run.problems or run.shown)
    if state and len(state["before"]) == asked:
        val_loss, before = state["val_loss"], state["before"]
    else:
        val_loss = evaluate(run.model, run.val_batches) if run.val_batches else None
        before = answer(run, "before")
    rows = fit(parser, args, run, method, state, dict(val_loss=val_loss, before=before), final, folder)
    if method.start:
        pissa_to_lora(run.model, method.start)
    if RANK == 0:
        save(args, run, folder)
    after = answer(run, "after")
    if RANK > 0:
        return
    if args.merge:
        shutil.rmtree(folder / "merged") if (folder / "merged").exists() else None  # of a try that was cut off
        print(f"merged model in {short(final / 'merged')}: {save_merged(run.model, folder / 'merged', run.base)}")
    results = summary(run, val_loss, rows, before, after, started)
    write_json(folder / "run.json", described(args, run, method, results))  # last: the mark of a finished run
    (folder / CHECKPOINT).unlink(missing_ok=True)
    finish_overwrite(final)
    report(args, run, final, results, before, after)
    print_next(args, run, argv, final)


def check_out(args, base: Path) -> bool:
    """Whether --out holds a run that --overwrite is to replace. ValueError for a folder that must not be written to."""
    check_paths(data=args.data, val=args.val)
    if not args.out:
        return False
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: it must be a folder")
    if args.overwrite and base.is_relative_to(out.resolve()):
        raise ValueError(f"--out {out} holds the base {args.base}, which --overwrite removes: choose another name")
    if args.resume:
        return False
    whole = [path for path in (out, out / ".unfinished", out / ".finished") if (path / "run.json").exists()]
    holds_run = bool(whole) or any(out.glob("*.safetensors"))
    ours = bool(whole) or (out / "metrics.csv").exists()  # finished, or cut off before its pass@1
    if holds_run and (not ours or out.resolve() == base):
        raise ValueError(f"--out {out} holds files that are no run of train.py, or the base: choose another name")
    if holds_run and not args.overwrite:
        raise ValueError(f"--out {out} holds a finished run: choose another name, or add --overwrite" if whole else
                         f"--out {out} holds a run that was stopped: choose another name, or add " +
                         "--resume or " * (out / CHECKPOINT).exists() + "--overwrite")
    return holds_run


def load(args, base: Path) -> Run:
    """The base on its device, and the data as token ids."""
    try:
        device = torch.device(args.device)
        if device.type == "cuda" and WORLD > 1:  # a GPU for each process
            device = torch.device("cuda", LOCAL)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: a device that is a package of its own
        raise ValueError(f"--device {args.device}: {str(error).splitlines()[0]}") from None
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL goes by the current one
    dtype = getattr(torch, args.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    train_problems, val_problems, tests = load_data(args)
    test_problems = draw(tests, args.eval_problems)  # the same for every seed
    encoding = load_tokenizer(base)
    # Full fine-tuning keeps its weights in float32 and computes in dtype, as mixed precision does.
    model = load_model(base, torch.float32 if args.method == "full" else dtype, "cpu" if args.shard else device)
    parameters = sum(p.numel() for p in model.parameters())
    if args.shard:
        shard(model, device)
    chat = chat_for(train_problems + val_problems + test_problems, base, encoding)
    how = encoding, model.config, chat, args.max_length, args.truncate
    noun = "problems" if train_problems[0]["form"] == "problem" else "examples"
    examples = encode_all(train_problems, f"training {noun}", *how)
    val_examples = encode_all(val_problems, f"validation {noun}", *how)
    if not examples:
        raise ValueError(f"--data {args.data}: no {noun[:-1]} is left to train on")
    asked = test_problems or (val_problems or train_problems)[:50] * (args.eval_problems > 0)
    prompts = [encode_prompt(encoding, p, begin_token(encoding, model.config), chat) for p in asked]  # or is refused
    fitting = [p for p, ids in zip(asked, prompts) if 0 < len(ids) < model.config.max_position_embeddings]
    questions = (" ".join(p["problem"].split()) for p in asked + train_problems)
    question = next((q for q in questions if 0 < len(q) < 100 and q[0] != "-" and q == printable(q)), "-")
    val_examples.sort(key=lambda example: len(example[0]))  # little padding
    first, each = share = (0, 1) if args.shard else (RANK, WORLD)  # split weights: all processes take the same steps
    val_batches = [collate(val_examples[i : i + 50][first::each]) for i in range(0, len(val_examples), 50)]
    return Run(base, model, encoding, device, dtype, parameters, examples, share, val_batches, len(val_examples),
               test_problems, len(tests), fitting[: not test_problems], question, asking(train_problems), noun, chat)


def load_data(args) -> tuple[list[dict], list[dict], list[dict]]:
    """Training, validation and test problems. Nothing is held out of the training file where validation is given."""
    path = Path(args.data)
    train_problems = load_problems(data_file(path, "train"))
    val_file = Path(args.val) if args.val else data_file(path, "val")
    if args.val or path.is_dir() and val_file.is_file():
        val_problems = load_problems(val_file)
    else:  # the same problems for every seed
        order = torch.randperm(len(train_problems), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = min(300, len(train_problems) // 10)
        val_problems = [train_problems[i] for i in sorted(order[:held_out])]
        train_problems = [train_problems[i] for i in sorted(order[held_out:])]
    test_file = data_file(path, "test")
    test_problems = load_problems(test_file) if path.is_dir() and test_file.is_file() else val_problems
    return train_problems, val_problems, [p for p in test_problems if p["answer"]]


def encode_all(problems, name, encoding, config, chat=None, max_length=None, truncate=False) -> list[tuple]:
    """Examples that have something to learn and fit the context, or max_length; what becomes of others is said."""
    end, bos, context = end_tokens(encoding, config)[0], begin_token(encoding, config), config.max_position_embeddings
    longest = min(max_length or context, context)
    examples = [e for p in problems for e in encode_examples(encoding, p, end, bos, chat) or [([], [])]]
    long = sum(len(ids) > longest for ids, _ in examples)
    if truncate:
        examples = [(ids[:longest], labels[:longest]) for ids, labels in examples]
    learnt = [e for e in examples if any(label != -100 for label in e[1][1:])]
    fitting = [e for e in learnt if len(e[0]) <= longest]
    longer = f"longer than {'the context of' if longest == context else '--max-length'} {longest} tokens"
    for count, what, why in ((truncate * long, "cut", longer), (len(learnt) - len(fitting), "left out", longer),
                             (len(examples) - len(learnt), "left out", "no solution to learn")):
        if count:
            print(f"{what} {count:,} of {len(examples):,} {name}: {why}")
    return fitting


def adapt(args, model: GPT) -> Method:
    """Puts the method's adapters into the model."""
    torch.manual_seed(args.seed)  # before A's init
    if args.method == "full":
        return Method()
    targets, lr_ratio = args.targets, (args.lr_ratio or 16.0) if args.method == "lora+" else 1.0
    if targets and len(targets) == 1:  # names with commas, or else all-linear or a regular expression
        targets = targets[0].split(",") if re.fullmatch(r"[\w.]+(,[\w.]+)*", targets[0]) else targets[0]
    try:
        if args.init is not None:  # its B is not 0: no ratio of the first step is known before, as with PiSSA
            linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
            layers = lora_layers(load_adapter(model, resolve(args.init, "--init")))
            if targets and layers.keys() != {n for n in linears if targeted({"target_modules": targets}, n)}:
                own = " ".join(sorted({name.split(".")[-1] for name in layers}))
                raise ValueError(f"--targets {' '.join(args.targets)}: --init {args.init} has {own}: leave it out")
            return next(Method(layer.alpha, layer.scaling, lr_ratio) for layer in layers.values())
        alpha = method_alpha(args.method, args.rank, args.alpha, args.c)
        inject_lora(model, args.rank, alpha, targets=targets, dropout=args.dropout)
        s = lora_scaling(args.rank, alpha)
        if s < torch.finfo(torch.float32).tiny:
            raise ValueError(f"alpha = {alpha:g}: s = alpha/r is 0 in float32: raise --alpha or --c")
        if args.method == "pissa":
            return Method(alpha, s, lr_ratio, None, pissa_init(model))
        return Method(alpha, s, lr_ratio, first_step_ratio(model) * lr_ratio)
    except OverflowError:
        raise ValueError("alpha is beyond float arithmetic: lower --alpha, --c or --rank") from None
    except RuntimeError as error:  # torch's words: no memory for the adapters, no singular values of a NaN
        raise ValueError(f"--method {args.method} --rank {args.rank}: {str(error).splitlines()[0]}") from None


def claim_folder(args, base: Path, stack: contextlib.ExitStack) -> tuple[Path, Path]:
    """The run's folder, --out or the next free name under out/, and where its files go until they are whole."""
    if args.out:
        final = Path(args.out)
        final.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(final))
        finish_overwrite(final)
        if args.resume:
            return final, checkpoint_of(final).parent
        if not check_out(args, base):  # again: from here on nobody else changes it
            return final, final
        if (final / ".unfinished").exists():  # an earlier try to overwrite it
            shutil.rmtree(final / ".unfinished")
        (final / ".unfinished").mkdir()
        return final, final / ".unfinished"
    name = args.method if args.method == "full" else f"{args.method}-r{args.rank}"
    for number in range(1, 100_000):
        final = Path("out", f"{name}-{number}")
        try:
            final.mkdir(parents=True)
            stack.enter_context(locked(final))
            return final, final
        except FileExistsError:
            continue
    raise ValueError(f"out/ has no free name left for {name}")


def announce(args, run: Run, method: Method) -> None:
    """The lines that say what will happen, with s."""
    dtype = str(run.dtype).removeprefix("torch.")
    print(f"base    {short(args.base)}, {run.base_parameters:,} parameters, on {run.device} in {dtype}")
    print(f"data    {short(args.data)}, {len(run.examples):,} training and {run.n_val:,} validation {run.noun}")
    trainable = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    if args.method == "full":
        print(f"method  full fine-tuning, {trainable:,} trainable parameters (100%)")
    else:
        rule = "(given)" if args.alpha is not None else {"lora-alpha": f"= {args.c or 256:g}·√{args.rank}",
                                                         "pissa": "= r"}.get(args.method, "= 2r")
        if args.method == "rslora":
            rule = f"= {args.alpha or 16:g}·√{args.rank}"
        if args.init is not None:
            rule = f"from {args.init}"
        if args.method == "lora+":
            rule += f", B's learning rate {method.lr_ratio:g} times A's"
        print(f"method  {args.method}, rank {args.rank}, alpha {method.alpha:g} {rule}, s = alpha/r = {method.s:g}; "
              f"{trainable:,} trainable parameters ({100 * trainable / run.base_parameters:.1f}% of the base's)")
    if method.first_step:
        print(f"step 1  moves the weights by rms(ΔW)/lr = {method.first_step:.2f}; full fine-tuning's is 1")
    update = min(args.batch_size * args.grad_accum, len(run.examples))
    print(f"loop    AdamW, {args.steps} steps of {update} {run.noun}, {args.steps * update / len(run.examples):.3g} "
          f"epochs, peak learning rate {args.lr:g}" + f", {WORLD} processes" * (WORLD > 1), flush=True)


def answer(run: Run, when: str) -> list[dict]:
    """The graded answers to the test problems, and a line with their pass@1; without any, to the one shown."""
    start, count = time.time(), len(run.problems)
    first, each = run.share if count else (0, 1)
    problems = (run.problems or run.shown)[first::each]
    progress = Progress(f"pass@1 {when}", len(problems), sys.stdout, quiet=10) if problems and count else None
    mixed = run.dtype != run.model.model.embed_tokens.weight.dtype
    with torch.autocast(run.device.type, run.dtype, enabled=mixed):
        records = solve(run.model, run.encoding, problems, run.chat, 256 if count else 64, progress)
    if each > 1:
        records = sorted(({**record, "id": record["id"] * each + k} for k, part in enumerate(gathered(records))
                          for record in part), key=lambda record: record["id"])
    if count:
        share = 100 * summarize(records)["pass1"]
        print(f"pass@1 {when}: {count:,} problems, {share:.1f}% in {time.time() - start:.0f} s", flush=True)
    return records


def fit(parser: Parser, args, run: Run, method: Method, state, results: dict, final: Path, folder: Path) -> list[dict]:
    """Trains, from the checkpoint's state if there is one; a row of metrics a step. Divergence ends it in one line."""
    if args.compile:
        run.model.compile()  # in place: no wrapper whose name would get into the adapter's keys
    done, stop, saved = state["rows"] if state else [], [], time.monotonic()
    progress, val = Progress("step", args.steps, sys.stdout, first=len(done)), ""
    known = f"  pass@1 {100 * summarize(results['before'])['pass1']:.1f}%" if run.problems and progress.terminal else ""

    def log(row):
        nonlocal val
        fresh = row["val_loss"] is not None
        val = f"  val {row['val_loss']:.4f}" if fresh else val
        progress(row["step"], f"loss {row['loss']:.4f}{val}{known}  {row['tokens_per_s']:,.0f} tok/s", always=fresh)

    def on_signal(number, frame):
        stop.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if RANK == 0:
            os.write(2, b"\nfinishing the step and saving it; once more stops at once\n")  # print may be in use already

    def after(rows, optimizer):
        nonlocal saved
        step, every = len(rows), args.checkpoint_every
        due = step % every == 0 if every else RANK == 0 and time.monotonic() - saved >= 600
        stopped, due = summed(torch.tensor([len(stop), due])).tolist()  # all processes do the same
        if stopped or due:
            save_checkpoint(args, run, folder / CHECKPOINT, rows, optimizer, results)
            saved = time.monotonic()
        if stopped:
            print(f"\nstopped after step {step} of {args.steps}. {how_to_go_on(final, folder)}", flush=True)
            sys.exit(128 + (stop or [signal.SIGTERM])[0])

    batches = epochs(run.examples, args.batch_size, args.grad_accum, args.seed, len(done), (RANK, WORLD))
    if RANK > 0:
        torch.manual_seed(args.seed + RANK)  # its own dropout
    if state and len(state["random"]) == WORLD:  # else from the seed again: the data's order is the same all the same
        set_random(state["random"][RANK], run.device)
    handlers = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        rows = train(run.model, batches, args.steps, args.lr, grad_accum=args.grad_accum, grad_clip=args.grad_clip,
                     weight_decay=args.weight_decay, lr_ratio=method.lr_ratio, val_batches=run.val_batches,
                     eval_every=args.eval_every or max(1, args.steps // 4), drift=args.drift, log=log, after=after,
                     done=done, state=state and state["optimizer"], metrics=None if RANK else folder / "metrics.csv",
                     autocast=None if run.dtype == torch.float32 else run.dtype)
        if not math.isfinite(rows[-1]["val_loss"] or 0):  # of weights that are finite, and too large
            raise FloatingPointError(f"validation loss that is not finite after step {args.steps}")
        return rows
    except FloatingPointError as error:
        cure = f"alpha·lr = {method.alpha * args.lr:g}: lower --lr or alpha" if method.alpha else "lower --lr"
        cure += " or --lr-ratio" if args.method == "lora+" else ""
        print()  # ends the line of the progress bar
        if RANK > 0:
            time.sleep(1)  # the first says so, before torchrun ends it because of this one
            sys.exit(2)
        parser.error(f"the run diverged: {error}; {cure}. The steps until then are in {folder / 'metrics.csv'}")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def save(args, run: Run, folder: Path) -> None:
    """The adapter, or with full fine-tuning the model; each file is renamed into place when it is whole."""
    if args.method == "full":
        save_model(run.model, folder, run.base)
        return
    name = os.path.abspath(args.base) if Path(args.base).exists() else args.base
    save_adapter(run.model, folder, base=name if os.path.isabs(name) else name.partition("@")[0])  # as PEFT has it
    write_json(folder / "training.json", dict(base=name, base_sha256=base_sha256(run.base), **run.asked))


def summary(run: Run, val_loss: float | None, rows: list[dict], before, after, started: float) -> dict:
    """The results: run.json's, and what is printed."""
    pass1 = [summarize(records)["pass1"] if run.problems else None for records in (before, after)]
    results = dict(pass1_before=pass1[0], pass1_after=pass1[1], n_problems=len(run.problems),
                   val_loss_before=val_loss, val_loss_after=rows[-1]["val_loss"],
                   clipped=sum(row["clipped"] for row in rows) / len(rows), seconds=round(time.time() - started, 1))
    if run.problems:
        found = summarize(after)
        whole = {name: found[name] for name in ("n", "pass1", "low", "high")}
        results["levels"] = {**found.get("level", {}), "all levels": whole}
    return results


def described(args, run: Run, method: Method, results: dict) -> dict:
    """run.json: the flags, what they came to, and what a result needs beside them to be found again."""
    packages = ["torch", "numpy", "tiktoken", "tokenizers", "safetensors"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {**vars(args), "alpha": method.alpha, "s": method.s, "lr_ratio": method.lr_ratio,
            "first_step_ratio": method.first_step, "dtype": str(run.dtype).removeprefix("torch."),
            "n_train": len(run.examples), "n_val": run.n_val,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "machine": dict(platform=platform.platform(), processor=platform.machine(), gpu=gpu,
                            threads=torch.get_num_threads(), processes=WORLD),
            "commit": commit(), "results": results}


def commit() -> str | None:
    """The git commit of these files, "-dirty" where they differ from it; None where git does not keep them."""
    def git(*words):
        try:
            return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):  # no git, no repository, or not in it
            return None
    if not git("ls-files", "--error-unmatch", "train.py", "lora_alpha.py"):
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{git('rev-parse', 'HEAD')}{'-dirty' if changed else ''}"


def report(args, run: Run, folder: Path, results: dict, before, after) -> None:
    """Losses, the table, one worked example, and where it all lies."""
    if results["val_loss_before"] is not None:
        losses = results["val_loss_before"], results["val_loss_after"]
        print("\nvalidation loss {:.4f} → {:.4f}".format(*losses), end="")
        if not run.problems:
            print(", perplexity {:.4g} → {:.4g}".format(*(math.exp(min(loss, 700)) for loss in losses)), end="")
    if args.grad_clip is not None:
        print(f"; {100 * results['clipped']:.0f}% of the steps were clipped", end="")
    print()
    if run.problems:
        if len(run.problems) < run.n_tests:
            print(f"{len(run.problems):,} of {run.n_tests:,} test problems, drawn with seed 0")
        print_table({"before": before, "after": after})
    if after:  # The example is the first problem that was learnt, else the first of all.
        i = next((i for i, (b, a) in enumerate(zip(before, after)) if a["correct"] > b["correct"]), 0)
        problem = (run.problems or run.shown)[i]
        gold = problem["answer"] or problem["solution"]
        for title, text in ((f"\n{run.noun[:-1]}", problem["problem"]), ("  before", before[i]["completion"]),
                            ("  after ", after[i]["completion"]), ("  gold  ", gold)):
            print(title, printable(text.strip()))
    what = "model" if args.method == "full" else "adapter"
    print(f"\n{what} in {short(folder)}, {results['seconds']:.0f} s in all. To try next:")


def print_next(args, run: Run, argv: list[str], folder: Path) -> None:
    """The commands that a user may want next, as a shell takes them."""
    model = ["--base", short(folder), "--adapter", "none"] if args.method == "full" else ["--adapter", short(folder)]
    words = ["--prompt", run.asked["prompt"]] if args.method == "full" and run.asked["prompt"] != PROMPT else []
    newest = args.method != "full" and Path(short(folder)).parent == Path("out")  # --ask finds it by itself
    print(f"  {shlex.join(['python', 'eval_pass1.py', *model * (not newest), *words, '--ask', run.question])}")
    if not run.shown:
        tested = args.data if Path(args.data).is_dir() and data_file(args.data, "test").is_file() else args.val
        other = ["--data", short(tested)] if tested and Path(tested) != HERE / "data/equations" else []
        print(f"  {shlex.join(['python', 'eval_pass1.py', *model, *other])}")
    if args.method == "lora-alpha" and args.out is args.alpha is args.c is args.init is None and "--method" not in argv:
        print(f"  {shlex.join(['python', 'train.py', *argv, '--method', 'lora'])}")


def short(path: str | Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# ---- Several processes, by torchrun ----------------------------------------------------------------------------------


def join():
    """Enters the group of torchrun's processes, where there are several; returns what leaves it."""
    if WORLD == 1:
        return lambda: None
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return distributed.destroy_process_group


def gathered(value) -> list:
    """The value of each process, in their order."""
    values = [value] * WORLD
    if WORLD > 1:
        distributed.all_gather_object(values, value)
    return values


def together(parser: Parser, step, alone: bool = False):
    """What step() gives, in every process its own, or with alone in all what it gave in the first one.

    A mistake ends all of them and is told once: by the first process that met it."""
    result = mistake = None
    try:
        if RANK == 0 or not alone:
            result = step()
    except (SystemExit, ValueError, OSError, re.error) as error:
        mistake = error
    status = None if mistake is None else getattr(mistake, "code", 2)
    every = gathered((status, result if alone else None))
    first = next((k for k, (status, _) in enumerate(every) if status is not None), None)
    if first is None:
        return every[0][1] if alone else result
    if first == RANK and not isinstance(mistake, SystemExit):  # which has said why
        parser.error(mistake)
    time.sleep(first != RANK)  # torchrun ends all once one has ended, and that one is to speak first
    sys.exit(every[first][0])


def shard(model: GPT, device: torch.device) -> None:
    """FSDP2: each process keeps its share of every block's weights, and gathers a block's while it computes with it.

    Adapters are injected after it, so they are whole everywhere, and only frozen weights are split."""
    from torch.distributed.fsdp import fully_shard
    mesh = distributed.init_device_mesh(device.type, (WORLD,))
    for block in model.requires_grad_(False).model.layers:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    model.to(device)


# ---- Checkpoints -----------------------------------------------------------------------------------------------------

CHECKPOINT = "checkpoint.safetensors"
# Flags that a run may go on with at other values: they change nothing that is learnt.
FREE = {"out", "overwrite", "resume", "checkpoint_every", "eval_every", "eval_problems", "merge", "device", "compile"}


def save_checkpoint(args, run: Run, path: Path, rows: list[dict], optimizer, results: dict) -> None:
    """All that the next step depends on, in one file: its renaming is the moment at which it replaces the last one."""
    tensors = {f"model.{name}": p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": tensor for key, tensor in state.items()}
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise FloatingPointError(f"weights that are not finite after step {len(rows)}")
    for rank, states in enumerate(gathered(random_states(run.device))):
        tensors |= {f"random.{rank}.{name}": state for name, state in states.items()}
    if RANK > 0:
        return
    flags = vars(args) | {"dtype": str(run.dtype).removeprefix("torch.")}
    text = json.dumps(dict(flags=flags, cwd=os.getcwd(), origin=origin(args, run), rows=rows, **results))
    tensors["state"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    write_tensors(path, tensors | {"sha256": sha256(tensors)})


def read_checkpoint(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What was not a tensor, and the tensors. ValueError for a file that is not as it was written."""
    tensors = read_tensors(path)
    stored = tensors.pop("sha256", torch.empty(0))
    if not torch.equal(stored, sha256(tensors)):
        raise ValueError(f"{path}: it is damaged, or no checkpoint: its sha256 is another; start the run anew")
    return json.loads(bytes(tensors.pop("state").numpy())), tensors


def load_checkpoint(args, run: Run, path: Path) -> dict:
    """Puts the weights back and returns the rest. ValueError where data or base are no longer what they were."""
    state, tensors = read_checkpoint(path)
    for name, digest in origin(args, run).items():
        if digest != state["origin"].get(name):
            raise ValueError(f"{name} has changed since the run began: sha256 {state['origin'].get(name)} then, "
                             f"{digest} now; put it back, or start the run anew")
    state |= dict(optimizer={}, random={})
    for name, tensor in tensors.items():
        kind, _, name = name.partition(".")
        if kind == "model":
            run.model.get_parameter(name).data.copy_(tensor)
        else:  # the number of a parameter, or of a process
            number, _, name = name.partition(".")
            state[kind].setdefault(int(number), {})[name] = tensor
    return state


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state()} | cuda


def set_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def sha256(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def origin(args, run: Run) -> dict[str, str]:
    """{what: sha256} of the data files and the base's."""
    data = {"--val": Path(args.val)} if args.val else {}
    data |= {f"--data's {name}": data_file(args.data, name) for name in ("train", "val", "test")}
    return ({name: sha256_of([path]) for name, path in data.items() if path.is_file()}
            | {f"--base's {name}": digest for name, digest in weights_of(run.base).items()})


def checkpoint_of(out: Path) -> Path:
    """The checkpoint in a run's folder; that of a run which is to overwrite it comes first."""
    for path in (out / ".unfinished" / CHECKPOINT, out / CHECKPOINT):
        if path.is_file():
            return path
    raise ValueError(f"--out {out} holds no checkpoint: there is nothing to resume, leave out --resume")


def how_to_go_on(final: Path, folder: Path) -> str:
    start = ["torchrun", "--nproc_per_node", str(WORLD)] if WORLD > 1 else ["python"]
    command = shlex.join([*start, "train.py", "--resume", "--out", short(final)])
    return (f"To go on from the last checkpoint: {command}" if (folder / CHECKPOINT).is_file() else
            f"No checkpoint was written yet; what was saved is in {short(folder)}")


def take_flags(parser: Parser, args) -> None:
    """The flags of the run in --out. One that is given as well must have the same value, but for those of FREE."""
    try:
        out = Path(args.out or "")
        if args.out is None or not out.is_dir():
            raise ValueError(f"--out {args.out}: --resume needs the folder of the run that is to go on")
        if any((out / part / "run.json").exists() for part in (".unfinished", ".finished")):
            with locked(out):
                finish_overwrite(out)
        if (out / "run.json").exists() and not (out / ".unfinished" / CHECKPOINT).exists():
            print(f"the run in {args.out} is finished: there is nothing to do")
            sys.exit(0)
        state, _ = read_checkpoint(checkpoint_of(out))
    except (ValueError, OSError) as error:
        parser.error(error)
    for name, value in state["flags"].items():
        paths = name in ("base", "data", "val", "init") and value
        if paths and Path(state["cwd"], value).exists() and os.getcwd() != state["cwd"]:
            value = os.path.join(state["cwd"], value)
        mine, given = getattr(args, name), name in parser.given or getattr(args, name) is True
        same = mine == value or paths and mine and os.path.abspath(mine) == os.path.abspath(value)
        if given and not same and name not in FREE:
            parser.error(f"--{name.replace('_', '-')} {mine}: the run in {args.out} has {value}; leave it out")
        if not given and name not in ("resume", "overwrite"):
            setattr(args, name, value)


@contextlib.contextmanager
def locked(folder: Path):
    """Makes the folder this process's own. ValueError, naming the other, where it belongs to one that is alive.

    flock: the kernel frees it when a process ends, however it ends. Where a network file system does not carry it to
    other machines, the file's machine and time count, which is renewed every minute.
    """
    path, here, fresh = folder / "lock", platform.node(), False
    while not fresh:  # else the process before removed it just now
        file, held = open(path, "a+", encoding="utf-8"), None  # None: a system or file system without such locks
        with contextlib.suppress(AttributeError, OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = False
            except BlockingIOError:
                held = True
        fresh = held or path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    file.seek(0)
    pid, _, host = file.read().partition(" ")
    age = time.time() - os.fstat(file.fileno()).st_mtime
    if held or pid and age < 300 and (held is None or host != here):
        file.close()
        seen = "and it is alive" if held else f"seen {age:.0f} s ago; a dead one's lock ends after 300 s"
        raise ValueError(f"--out {folder} belongs to process {pid or 'unknown'} on {host or here}, {seen}: choose "
                         "another name, or wait for its end")
    file.truncate(0)
    file.write(f"{os.getpid()} {here}")
    file.flush()
    ended = threading.Event()

    def renew():
        while not ended.wait(60):
            os.utime(file.fileno())

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        path.unlink(missing_ok=True)
        file.close()


def finish_overwrite(out: Path) -> None:
    """Puts a whole new run from out/.unfinished in the old one's place. Cut off anywhere, it can be called again.

    The old run's files go while the new ones are all in .unfinished; its renaming to .finished says that they may move.
    """
    ours = re.compile(r"(run|training)\.json|metrics\.csv|config\.json|adapter_.*|.*\.safetensors")
    new = out / ".finished"
    if (out / ".unfinished/run.json").exists():
        for path in sorted(out.iterdir(), key=lambda path: path.name != "run.json"):  # run.json first
            if COPIED.fullmatch(path.name) or ours.fullmatch(path.name):
                path.unlink()
        if (out / "merged").exists():
            shutil.rmtree(out / "merged")
        os.rename(out / ".unfinished", new)
        sync(out)
    if (new / "run.json").exists():
        for path in sorted(new.iterdir(), key=lambda path: path.name == "run.json"):  # run.json last
            os.replace(path, out / path.name)
        new.rmdir()
        sync(out)


# ---- The command merge -----------------------------------------------------------------------------------------------


def merge(argv):
    """The command `python train.py merge`."""
    parser = Parser(prog="train.py merge", description="Folds a PEFT adapter into its base, W0 + s·B·A: a model folder "
                    "that transformers, vLLM and llama.cpp's converter take.")
    parser.add_argument("--base", metavar="MODEL", help="model folder or hub name (default: that of its training)")
    parser.add_argument("--adapter", required=True, metavar="FOLDER", help="PEFT adapter folder or name")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to: a new or empty folder")
    args = parser.parse_args(argv)
    try:
        out = Path(args.out)
        cut_off = (out / "config.json.tmp").exists() and not (out / "config.json").exists()  # a merge that was killed
        if out.exists() and (not out.is_dir() or any(out.iterdir()) and not cut_off):
            raise ValueError(f"--out {args.out} is not an empty folder: choose another name")
        adapter = resolve(args.adapter, "--adapter")
        _, base = pick_base(args.base, {args.adapter: adapter})
        model = load_adapter(load_model(base), adapter)
        print(f"merged model in {args.out}: {save_merged(model, out, base)}")
    except (ValueError, OSError) as error:
        parser.error(error)


def save_merged(model, folder: Path, base: Path) -> str:
    """Merges the adapters and writes the model folder, all but the weights as in the base's. Returns what changed."""
    layers = lora_layers(model).values()
    changed = sum(int((layer.merged_weight() != layer.base.weight).sum()) for layer in layers)
    share = changed / sum(layer.base.weight.numel() for layer in layers)
    merge_lora(model)
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")  # bfloat16 loses what moves by less than half a step
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "config.json.tmp").touch()  # the mark of a merge that is not whole
        check_tensors("the merged model", model.state_dict(), ())  # float16 ends at 65,504
        save_model(model, folder, base)
    except BaseException:  # the same command can be tried again
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return f"{100 * share:.2f}% of the adapted weights changed, in {dtype}"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; nothing that was saved before has changed", file=sys.stderr)
        sys.exit(130)
