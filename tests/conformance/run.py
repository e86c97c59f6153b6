"""Checks any implementation of LoRA-alpha against vectors/*.json: numpy alone, no torch.

    python tests/conformance/run.py --impl mymodule
    python tests/conformance/run.py --adapter FOLDER --base FOLDER --logits FILE
    from tests.conformance.run import check; check({"alpha_for_rank": f, ...})

README.md says what each function takes and gives. Exit status: 0 where all that is offered passes, 1 where something
fails or nothing is offered, 2 where the command line, the module or the base folder cannot be used.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

VECTORS = Path(__file__).resolve().parent / "vectors"
CHECKS = ["alpha_for_rank", "lora_scaling", "lora_forward", "lora_grads", "adamw_steps", "merge", "merge_bf16",
          "signal_drift", "train_linear", "train_gpt"]
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}  # half the gap between 1 and the next number
FIXED = "alpha fixed while rank changed"


# ---- Functions -------------------------------------------------------------------------------------------------------


def check(functions: dict, dtype: str = "float64") -> bool:
    """Runs every check whose function is offered, prints a table, and says whether all passed and any was offered.

    functions: by name, each called with positional arguments: numpy arrays of the dtype (token ids: int64), Python
    numbers and strings. dtype: "float64", or "float32" for code that computes in it.
    """
    if unknown := sorted(functions.keys() - set(CHECKS)):
        raise ValueError(f"{unknown[0]!r} is not a check: the checks are {', '.join(CHECKS)}")
    rows = []
    for name in CHECKS:
        vectors = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
        cases = [prepare(case, vectors["roundoff"], dtype) for case in vectors["cases"]
                 if not (dtype == "float32" and case.get("dtype") == "float64")]
        offered = functions.get(name) is not None
        rows.append((name, *(verdict(name, functions[name], cases, dtype) if offered else ("not offered",))))
    return report(rows)


def prepare(case, roundoff, dtype):
    """The case with arrays for lists and a tolerance for each output."""
    dtype = case.get("dtype", dtype)
    return {**case, "dtype": dtype, "inputs": {key: to_numpy(value, dtype) for key, value in case["inputs"].items()},
            "outputs": {key: np.array(value) for key, value in case["outputs"].items()},
            "tolerance": {key: size * roundoff[dtype] for key, size in case["bound"].items()},
            "tolerance32": {key: size * roundoff["float32"] for key, size in case["bound"].items()},
            "mistakes": {label: {key: np.array(value) for key, value in wrong.items()}
                         for label, wrong in case["mistakes"].items()}}


def to_numpy(value, dtype):
    if isinstance(value, list):
        array = np.array(value)
        return array if array.dtype == np.int64 else array.astype(dtype)
    if isinstance(value, dict):
        return {key: to_numpy(part, dtype) for key, part in value.items()}
    return value


def read(result, case, check_dtype=False):
    """The result as float64 arrays under the outputs' names. ValueError for a wrong number, shape or dtype."""
    names = list(case["outputs"])
    if len(names) == 1:
        result = [result]
    elif not hasattr(result, "__len__") or len(result) != len(names):
        raise ValueError(f"returned {describe(result)}, want {len(names)} values: {', '.join(names)}")
    got = {}
    for name, value in zip(names, result):
        array, want = np.asarray(value), case["outputs"][name]
        if array.dtype == object or np.iscomplexobj(array) or array.dtype.kind in "US":
            raise ValueError(f"{name} is {describe(value)}, want real numbers")
        if array.shape != want.shape:
            raise ValueError(f"{name} has shape {array.shape}, want {want.shape}")
        if check_dtype and array.dtype != case["dtype"]:
            hint = " (--dtype float32 is for code that computes in it)" if array.dtype == np.float32 else ""
            raise ValueError(f"{name} is {array.dtype}, want W0's dtype {case['dtype']}{hint}")
        got[name] = array.astype(np.float64)
    return got


def describe(value):
    return f"{len(value)} values" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"


def verdict(name, function, cases, dtype):
    """status, largest error, its tolerance, words; of the output whose error is largest against its tolerance."""
    got = []
    for case in cases:
        try:
            got.append(read(function(*case["inputs"].values()), case, check_dtype=name == "merge"))
        except (Exception, SystemExit) as error:  # a stranger's function may do anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].removeprefix("ValueError: ")
            guess = exchanged(function, case)
            return "FAIL", None, None, (f"likely: {guess}; " if guess else "") + f"[{case['name']}: {reason}]"
    worst = max((excess(got[i][key], case["outputs"][key], case["tolerance"][key]), -i, key)
                for i, case in enumerate(cases) for key in case["outputs"])
    i, key = -worst[1], worst[2]
    case, error = cases[i], distance(got[i][key], cases[i]["outputs"][key])
    if worst[0] <= 1:
        return "PASS", error, case["tolerance"][key], ""
    guess = explain(name, got, cases)
    if dtype == "float64" and not guess and all(
            excess(g[key], case["outputs"][key], case["tolerance32"][key]) <= 1
            for g, case in zip(got, cases) for key in g):
        guess = "right to float32's precision: run with --dtype float32"
    where = worst_entry(got[i][key], case["outputs"][key])
    index = f"[{', '.join(map(str, where))}]" if where else ""
    words = f"[{case['name']}: {key}{index} = {got[i][key][where]:.9g}, want {case['outputs'][key][where]:.9g}]"
    return "FAIL", error, case["tolerance"][key], (f"likely: {guess} " if guess else "no known mistake fits ") + words


def distance(a, b):
    """The largest difference; infinite where either is not a number."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf).max())


def worst_entry(a, b):
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.nan_to_num(np.abs(a - b), nan=np.inf, posinf=np.inf)
    return tuple(map(int, np.unravel_index(difference.argmax(), difference.shape)))


def excess(a, b, tolerance):
    """The largest difference in units of the tolerance, where that may be 0."""
    error = distance(a, b)
    return error / tolerance if tolerance else np.inf if error else 0.0


def explain(name, got, cases):
    """The wrong rule that leaves least of the error, where it leaves less than 1% of it in every case, or ""."""
    if name == "alpha_for_rank":
        alphas = [float(g["alpha"]) for g in got]
        over_c = [alpha / case["inputs"]["c"] for alpha, case in zip(alphas, cases)]
        if np.ptp(alphas) <= 1e-6 * abs(alphas[0]) or np.ptp(over_c) <= 1e-6 * abs(over_c[0]):
            return f"{FIXED} (it stays {alphas[0]:g} at rank 1 to 256)"
    left = {}
    for label in dict.fromkeys(label for case in cases for label in case["mistakes"]):
        rests = []
        for g, case in zip(got, cases):
            for key, right in case["outputs"].items():
                wrong = case["mistakes"].get(label, case["outputs"])[key]
                apart = distance(right, wrong)  # 0 where the mistake does not show
                rests.append(distance(g[key], wrong) / (0.01 * apart + 2 * case["tolerance"][key] + 1e-300))
        left[label] = max(rests)
    best = min(left, key=left.get)
    return best if left[best] <= 1 else ""


def exchanged(function, case):
    """In which other arrangement of A, B and W0 a function that failed would run, in words, or ""."""
    inputs, outputs, swap = case["inputs"], case["outputs"], {"A": "B", "B": "A", "dA": "dB", "dB": "dA"}
    if "A" not in inputs:
        return ""
    swapped_in = {key: inputs[swap.get(key, key)] for key in inputs}
    swapped_out = {key: outputs[swap.get(key, key)] for key in outputs}
    turned = {key: value.T if key in swap else value for key, value in inputs.items()}
    attempts = [("A and B exchanged", inputs, swapped_out)] if "dA" in outputs else []
    attempts += [("A and B exchanged", swapped_in, outputs), ("A and B exchanged", swapped_in, swapped_out),
                 ("A and B transposed", turned, outputs)]
    if "W0" in inputs:
        attempts += [("W0 transposed", {**inputs, "W0": inputs["W0"].T}, outputs),
                     ("W0, A and B transposed", {**turned, "W0": inputs["W0"].T}, outputs)]
    for words, arguments, wanted in attempts:
        try:
            read(function(*arguments.values()), {**case, "outputs": wanted})
            return words
        except (Exception, SystemExit):  # not that one
            continue
    return ""


def report(rows):
    """Prints the table; True where something is offered and nothing fails."""
    print(f"{'status':12} {'check':16} {'largest error':>13} {'tolerance':>10}")
    for name, status, *rest in rows:
        error, tolerance, words = rest or (None, None, "")
        numbers = " ".join(f"{'' if value is None else format(value, '.2g'):>{width}}"
                           for value, width in ((error, 13), (tolerance, 10)))
        print(f"{status:12} {name:16} {numbers}  {words}".rstrip())
    count = {status: sum(row[1] == status for row in rows) for status in ("PASS", "FAIL", "not offered")}
    print(f"{count['PASS']} passed, {count['FAIL']} failed, {count['not offered']} not offered")
    return count["PASS"] > 0 and count["FAIL"] == 0


# ---- The GPT, for a trainer without functions ------------------------------------------------------------------------
# Shapes: B batch, T tokens, H query heads, K key/value heads, D head size.


def read_tensors(path):
    """The tensors of a safetensors file, bfloat16 as float32, which holds it exactly."""
    from safetensors import deserialize  # its loader into numpy knows no bfloat16

    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    tensors = {}
    for name, entry in deserialize(Path(path).read_bytes()):
        if entry["dtype"] not in kinds:
            raise ValueError(f"{path}: {name} holds {entry['dtype']}, want one of {', '.join(kinds)}")
        array = np.frombuffer(entry["data"], kinds[entry["dtype"]])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array.reshape(entry["shape"])
    return tensors


def read_base(folder):
    """config.json and the weights of a Llama, Mistral or Qwen2 folder of Hugging Face's form, in one file or shards."""
    raw = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if raw.get("model_type") not in ("llama", "mistral", "qwen2"):
        raise ValueError(f"{folder}: model_type is {raw.get('model_type')!r}, want llama, mistral or qwen2")
    if raw.get("hidden_act", "silu") != "silu" or raw.get("quantization_config") or raw.get("use_sliding_window"):
        raise ValueError(f"{folder}: only SwiGLU, whole weights and full attention are known here")
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{folder}: RoPE of type {kind!r} is not known here")
    heads = raw["num_attention_heads"]
    config = {**raw, "num_key_value_heads": raw.get("num_key_value_heads") or heads,
              "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
              "rms_norm_eps": raw.get("rms_norm_eps") or 1e-6,
              "rope_theta": rope.get("rope_theta") or raw.get("rope_theta") or 10000.0,
              "rope_scaling": rope if kind == "llama3" else None}
    weights = {}
    for path in sorted(Path(folder).glob("model*.safetensors")):
        weights |= read_tensors(path)
    if "model.embed_tokens.weight" not in weights:
        raise ValueError(f"{folder}: no model*.safetensors with model.embed_tokens.weight")
    if config.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights


def rope_tables(config, T):
    """cos and sin (T, D) of position times frequency; dimension i turns with i + D/2. With Llama 3's stretching."""
    D, scaling = config["head_dim"], config.get("rope_scaling")
    frequency = config["rope_theta"] ** (-np.arange(0, D, 2) / D)
    if scaling:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / scaling["factor"]
    angles = np.arange(T)[:, None] * np.concatenate([frequency, frequency])
    return np.cos(angles), np.sin(angles)


def gpt_logits(config, weights, idx, adapter=None, s=0.0, dtype=np.float64):
    """Logits (B, T, vocab_size) of the Llama-shaped GPT, s·B·A added in the layers of the adapter {name: (A, B)}."""
    D, eps = config["head_dim"], config["rms_norm_eps"]
    cos, sin = (table.astype(dtype) for table in rope_tables(config, idx.shape[1]))

    def linear(x, name):
        y = x @ weights[f"{name}.weight"].astype(dtype).T
        if f"{name}.bias" in weights:
            y = y + weights[f"{name}.bias"].astype(dtype)
        if adapter and name in adapter:
            A, B = (half.astype(dtype) for half in adapter[name])
            y = y + dtype(s) * (x @ A.T) @ B.T
        return y

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + dtype(eps)) * weights[f"{name}.weight"].astype(dtype)

    def heads(x):  # (B, T, H·D) -> (B, H, T, D)
        return x.reshape(*x.shape[:2], -1, D).swapaxes(1, 2)

    def rotate(x):
        return x * cos + np.concatenate([-x[..., D // 2:], x[..., : D // 2]], -1) * sin

    x = weights["model.embed_tokens.weight"][idx].astype(dtype)  # (B, T, C)
    future = np.triu(np.full((idx.shape[1],) * 2, -np.inf, dtype), 1)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (heads(linear(h, f"{layer}.self_attn.{name}_proj")) for name in "qkv")
        group = q.shape[1] // k.shape[1]  # query heads to a key/value head
        q, k, v = rotate(q), np.repeat(rotate(k), group, axis=1), np.repeat(v, group, axis=1)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(dtype(D)) + future  # (B, H, T, T)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        y = attention / attention.sum(-1, keepdims=True) @ v
        x = x + linear(y.swapaxes(1, 2).reshape(*idx.shape, -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        with np.errstate(over="ignore"):  # exp(-gate) may be infinite: the quotient is then 0
            gate = gate / (1 + np.exp(-gate))
        x = x + linear(gate * linear(h, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    return linear(norm(x, "model.norm"), "lm_head")


# ---- An adapter's files and logits -----------------------------------------------------------------------------------


def check_adapter(adapter, base, logits, dtype="float32") -> bool:
    """Checks a PEFT adapter folder against a base folder, and the logits claimed for the two; prints a table.

    dtype: what the trainer computed the logits in. Raises ValueError or OSError where base or logits cannot be read.
    """
    config, weights = read_base(base)
    idx, claimed = read_logits(logits, config["vocab_size"])
    if idx.shape[1] > (config.get("sliding_window") or np.inf):
        raise ValueError(f"{logits}: {idx.shape[1]} tokens exceed the sliding window, up to which attention is full")
    if not Path(adapter).is_dir():
        raise ValueError(f"{adapter}: there is no such folder")
    rows, rank, alpha, layers = [], None, None, {}
    try:
        raw = json.loads(Path(adapter, "adapter_config.json").read_text(encoding="utf-8"))
        rank, alpha, s = read_adapter_config(raw)
        rows.append(("adapter_config", "PASS", None, None, f"r = {rank}, alpha = {alpha:.9g} = "
                     f"{alpha / rank**0.5:.6g}·sqrt(r), s = {s:.9g}"))
    except (ValueError, OSError, AttributeError) as error:
        rows.append(("adapter_config", "FAIL", None, None, f"[{one_line(error)}]"))
    try:
        if rank is None:
            raise ValueError("not checked without a config")
        fewer = raw.get("layers_to_transform") is not None or raw.get("exclude_modules")
        targets = None if fewer else raw.get("target_modules")
        layers = read_adapter(Path(adapter, "adapter_model.safetensors"), rank, weights, targets)
        rows.append(("adapter_tensors", "PASS", None, None, f"{len(layers)} layers"))
    except Exception as error:  # SafetensorError is one of its own kind
        rows.append(("adapter_tensors", "FAIL", None, None, f"[{one_line(error)}]"))
    if not layers:
        rows.append(("logits", "FAIL", None, None, "[not checked without an adapter]"))
        return report(rows)

    def truth(s, kind=np.float64):
        with np.errstate(all="ignore"):  # a wrong s may overflow
            return gpt_logits(config, weights, idx, layers, s, kind)

    # What float32 costs in this very model, by our own forward pass in both; 8: another order of summation.
    right = truth(s)
    tolerance = 8 * distance(truth(s, np.float32), right) * ROUNDOFF[dtype] / ROUNDOFF["float32"]
    error = distance(claimed, right)
    if error <= tolerance:
        rows.append(("logits", "PASS", error, tolerance, ""))
        return report(rows)
    others = {"your s is alpha/sqrt(r)": alpha / rank**0.5, "alpha not divided by r": alpha,
              "s lost: 1 stands in its place": 1.0, "the adapter is not applied (s is 0)": 0.0,
              "s is 2, the habit, whatever the config": 2.0, "s applied twice": s * s}
    left = {label: distance(claimed, truth(t)) / (tolerance + 0.01 * distance(right, truth(t)))
            for label, t in others.items()}
    guess = min(left, key=left.get)
    if left[guess] > 1:
        guess, fitted = "", fit_s(truth, claimed, [s, *others.values()])
        if distance(claimed, truth(fitted)) <= 2 * tolerance:
            guess = f"your s is {fitted:.6g}, the files say {s:.6g}"
    where = worst_entry(claimed, right)
    rows.append(("logits", "FAIL", error, tolerance, (f"likely: {guess} " if guess else "no known mistake fits ") +
                 f"[logits{list(where)} = {claimed[where]:.9g}, want {right[where]:.9g}]"))
    return report(rows)


def one_line(error):
    return " ".join(str(error).split())[:300]


def read_logits(path, vocab_size):
    """idx (B, T), logits (B, T, vocab_size): JSON has both; .npy has logits, of the tokens 0, 1, 2, ... row by row."""
    if str(path).endswith(".npy"):
        logits = np.load(path)
        idx = None
    else:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not {"idx", "logits"} <= raw.keys():
            raise ValueError(f"{path}: want an object with idx and logits, or an .npy file")
        idx, logits = np.atleast_2d(np.array(raw["idx"])), np.array(raw["logits"])
    logits = logits[None] if logits.ndim == 2 else logits
    if logits.ndim != 3 or logits.shape[2] != vocab_size or logits.dtype.kind not in "fi":
        raise ValueError(f"{path}: logits have shape {logits.shape}, want (B, T, {vocab_size}) numbers")
    if idx is None:
        idx = np.arange(logits.shape[0] * logits.shape[1]).reshape(logits.shape[:2]) % vocab_size
    if idx.shape != logits.shape[:2] or idx.dtype.kind != "i" or idx.min() < 0 or idx.max() >= vocab_size:
        raise ValueError(f"{path}: idx must be {logits.shape[:2]} whole numbers from 0 to {vocab_size - 1}")
    return idx, logits.astype(np.float64)


def read_adapter_config(raw):
    """r, alpha of plain LoRA, and s."""
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"peft_type is {raw.get('peft_type')!r}, want 'LORA'")
    for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias"):
        if raw.get(key):
            raise ValueError(f"{key} is {raw[key]!r}: only plain LoRA and rsLoRA are checked here")
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not np.isfinite(alpha):
        raise ValueError(f"r is {rank!r} and lora_alpha {alpha!r}, want a whole number above 0 and a number")
    alpha = alpha * rank**0.5 if raw.get("use_rslora") else float(alpha)
    return rank, alpha, alpha / rank


def read_adapter(path, rank, weights, targets):
    """{layer: (A, B)} of an adapter file in PEFT's form. ValueError, with the likely mistake, for any other."""
    tensors = read_tensors(path)
    layers = {}
    for key in sorted(tensors):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", key)
        layer = match[1] if match else ""
        if layer.endswith("embed_tokens") or weights.get(f"{layer}.weight", np.zeros(1)).ndim != 2:
            raise ValueError(f"{key} is not of PEFT's form: base_model.model.LAYER.lora_A.weight (or lora_B), LAYER a "
                             "linear layer of the base, such as model.layers.0.self_attn.q_proj")
        layers[layer] = ()
    if not layers:
        raise ValueError("the file holds no tensor")
    for name in layers:
        m, n = weights[f"{name}.weight"].shape
        halves = [tensors.get(f"base_model.model.{name}.lora_{half}.weight") for half in "AB"]
        if any(half is None for half in halves):
            raise ValueError(f"{name} has not both lora_A and lora_B")
        shapes, want = [half.shape for half in halves], [(rank, n), (m, rank)]
        if shapes != want:
            guess = "A and B exchanged" if shapes == want[::-1] else "A and B transposed" \
                if shapes == [shape[::-1] for shape in want] else "r of the config is not that of the file" \
                if shapes == [(shapes[0][0], n), (m, shapes[0][0])] else ""
            raise ValueError((f"likely: {guess}; " if guess else "") + f"{name}: A {shapes[0]}, B {shapes[1]}, want "
                             f"A {want[0]}, B {want[1]}")
        if not all(np.isfinite(half).all() for half in halves):
            raise ValueError(f"{name} holds numbers that are not finite")
        layers[name] = halves
    named = [key.removesuffix(".weight") for key in weights if weights[key].ndim == 2 and "embed_tokens" not in key]
    if targets is None:
        return layers
    if isinstance(targets, str):
        from regex import fullmatch  # re's, but it stops: the pattern is a stranger's
        named = [name for name in named if (name != "lm_head" if targets == "all-linear" else
                                            fullmatch(targets, name, timeout=0.05))]
    else:
        named = [name for name in named if any(f".{name}".endswith(f".{target}") for target in targets)]
    if odd := sorted(set(named) ^ layers.keys()):
        raise ValueError(f"target_modules {targets!r} and the tensors differ in {odd[0]}: PEFT goes by the former")
    return layers


def fit_s(truth, claimed, starts):
    """The s whose logits come closest to those claimed: Gauss and Newton's steps from the best of the starts."""
    s = min(starts, key=lambda t: distance(claimed, truth(t)))
    for _ in range(20):
        h = 1e-5 * (1 + abs(s))
        slope, rest = (truth(s + h) - truth(s - h)) / (2 * h), claimed - truth(s)
        change = float((slope * rest).sum() / max((slope * slope).sum(), 1e-300))
        if not np.isfinite(change):
            break
        s += change
    return s


# ---- The command line ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"run.py: {message}\n")


def main(argv=None) -> int:
    parser = Parser(allow_abbrev=False, description="Checks an implementation of LoRA-alpha, or an adapter that it "
                    "wrote, against known answers. Exit status 0: all that is offered passes.")
    parser.add_argument("--impl", metavar="MODULE", help="module, or .py file, with any of " + ", ".join(CHECKS))
    parser.add_argument("--dtype", choices=["float64", "float32", "bfloat16"], help="what the implementation computes "
                        "in (default: float64 with --impl, float32 with --logits; bfloat16 for logits alone)")
    parser.add_argument("--adapter", metavar="FOLDER", help="PEFT's adapter_config.json and adapter_model.safetensors")
    parser.add_argument("--base", metavar="FOLDER", help="the Hugging Face folder that it belongs to")
    parser.add_argument("--logits", metavar="FILE", help="what base and adapter give: JSON with idx (B, T) and logits "
                        "(B, T, V), or .npy with the logits of the tokens 0, 1, 2, ... counted row by row")
    args = parser.parse_args(argv)
    files = [args.adapter, args.base, args.logits]
    if (args.impl is None) == (files == [None] * 3) or args.impl is None and None in files:
        parser.error("give --impl, or all of --adapter, --base and --logits")
    if args.impl is None:
        try:
            return 0 if check_adapter(*files, args.dtype or "float32") else 1
        except Exception as error:  # the base folder or the logits cannot be read
            parser.error(f"{type(error).__name__}: {one_line(error)}")
    if args.dtype == "bfloat16":
        parser.error("--dtype bfloat16 is for --logits: functions are checked in float64 or float32")
    sys.path.insert(0, os.getcwd())
    try:
        if args.impl.endswith(".py"):
            sys.path.insert(0, str(Path(args.impl).resolve().parent))
            spec = importlib.util.spec_from_file_location(Path(args.impl).stem, args.impl)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(args.impl)
    except (Exception, SystemExit) as error:
        parser.error(f"cannot import {args.impl}: {type(error).__name__}: {one_line(error)}")
    functions = {check: getattr(module, check) for check in CHECKS if callable(getattr(module, check, None))}
    return 0 if check(functions, args.dtype or "float64") else 1


if __name__ == "__main__":
    sys.exit(main())
