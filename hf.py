"""What Hugging Face and PEFT users have goes in and comes out: model folders, adapters, tokenizers.

Read top to bottom: model folders → adapters → tokenizers. No pickle is read or written. Every file is
written under a temporary name and then renamed, so that what was there before survives a failed write.
"""

import base64
import json
import math
import os
import re
import shutil
import unicodedata
from pathlib import Path

import tiktoken
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_alpha import ALL_LINEAR, GPT, GPTConfig, inject_lora, lora_layers, lora_scaling

# What torch.compile, FSDP, activation checkpointing and DDP put into the names of what they wrap.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
# The files of tokenizer and generation, which a model that is made of another keeps.
COPIED = re.compile(r".+\.(tiktoken|jinja)|tokenizer\.model|merges\.txt|(spec|tokenizer|tokenizer_config|vocab|"
                    r"special_tokens_map|added_tokens|chat_template|generation_config)\.json")
# What transformers takes where config.json lacks the key.
DEFAULTS = {"llama": dict(max_position_embeddings=2048, bos_token_id=1, eos_token_id=2),
            "mistral": dict(max_position_embeddings=131072, bos_token_id=1, eos_token_id=2, num_key_value_heads=8,
                            sliding_window=4096),
            "qwen2": dict(max_position_embeddings=32768, num_key_value_heads=32),
            "qwen3": dict(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)}

# ---- Model folders ---------------------------------------------------------------------------------------------------


def read_json(path: str | Path) -> dict:
    """The object in a JSON file. ValueError, naming the file, where it holds anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return value


def is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # finite, no bool, no int beyond float arithmetic


def write_json(path: str | Path, value: dict) -> None:
    Path(f"{path}.tmp").write_bytes((json.dumps(value, indent=2) + "\n").encode())
    os.replace(f"{path}.tmp", path)


def plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    temporary = Path(f"{path}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode  # as the user's umask has it; safetensors leaves a file to its owner alone
    tensors = {plain(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None
    temporary.chmod(mode)
    os.replace(temporary, path)


def read_tensors(path: str | Path, dtype=None, device="cpu") -> dict[str, torch.Tensor]:
    """A safetensors file's tensors, memory-mapped, floats in dtype; opened anew for each, so that cast pages go."""
    try:
        tensors = {}
        for key in sorted(safe_open(path, framework="pt").keys()):
            tensor = safe_open(path, framework="pt").get_tensor(key)
            if plain(key) in tensors:
                raise SafetensorError(f"{key} stands in it twice, with a wrapper's name and without")
            tensors[plain(key)] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        return tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: no safetensors file that can be read ({error})") from None


def check_tensors(where, tensors: dict[str, torch.Tensor], shapes: dict[str, tuple]) -> None:
    """ValueError, naming the tensor, unless these are exactly the tensors of these shapes, and floats."""
    for name in [*shapes, *sorted(tensors.keys() - shapes.keys())]:
        if name not in tensors or name not in shapes:
            raise ValueError(f"{where}: tensor {name} is {'missing' if name in shapes else 'of no layer here'}")
        dtype, shape = tensors[name].dtype, tuple(tensors[name].shape)
        if shape != shapes[name] or not dtype.is_floating_point:
            raise ValueError(f"{where}: tensor {name} holds {dtype} of shape {shape}, not floats of {shapes[name]}")


def load_config(folder: str | Path) -> GPTConfig:
    """config.json (and generation_config.json's end tokens) of a Llama, Mistral, Qwen2 or Qwen3 folder as a GPTConfig.

    Reads rope_theta and rope_scaling, or transformers 5's rope_parameters, which wins where both stand. A sliding
    window limits the context. Raises ValueError for a model type or a feature that this GPT would compute wrongly.
    """
    raw = read_json(path := Path(folder, "config.json"))
    kind = str(raw.get("model_type"))
    raw = {**DEFAULTS.get(kind, {}), **raw}
    raw = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0} | {k: value for k, value in raw.items() if value is not None}

    def need(right, key, what, *value):
        if not right:
            raise ValueError(f"{path}: {key} = {[*value, raw.get(key)][0]!r} is not supported: {what} is")

    need(kind in DEFAULTS, "model_type", f"one of {', '.join(DEFAULTS)}")
    for key, only in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None,
                      "use_sliding_window": False, "is_causal": True, "partial_rotary_factor": 1}.items():
        need(raw.get(key, only) == only, key, only)
    for key, most in {"vocab_size": 2**24, "hidden_size": 2**20, "intermediate_size": 2**20, "num_hidden_layers": 256,
                      "num_attention_heads": 2**20, "max_position_embeddings": 2**30, "num_key_value_heads": 2**20,
                      "head_dim": 2**20}.items():  # so that no size of a tensor is beyond torch
        need(type(raw.get(key)) is int and 0 < raw[key] <= most or key not in raw and kind != "qwen3"
             and key in ("num_key_value_heads", "head_dim"), key, f"a whole number from 1 to {most}")
    need(raw.get("tie_word_embeddings", False) in (False, True), "tie_word_embeddings", "true or false")
    need(raw.get("layer_types") in (None, ["full_attention"] * raw["num_hidden_layers"]), "layer_types", "only full")
    window = raw.get("sliding_window") if kind == "mistral" else None
    need(window is None or type(window) is int and window > 0, "sliding_window", "null or a whole number above 0")
    context = min(raw["max_position_embeddings"], window or 2**30)  # up to there attention is full
    which = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(which) or {}
    need(isinstance(rope, dict) and rope.get("partial_rotary_factor", 1) == 1 and not any(
        isinstance(value, dict) for value in rope.values()), which, "one object, for every dimension and layer")
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    need(rope_type in ("default", "llama3"), which, "the type default or llama3")
    theta = rope.get("rope_theta", raw["rope_theta"])
    scaling = {key: rope.get(key) for key in ("factor", "low_freq_factor", "high_freq_factor",
                                              "original_max_position_embeddings")} if rope_type == "llama3" else None
    for key, value in {"rope_theta": theta, "rms_norm_eps": raw["rms_norm_eps"], **(scaling or {})}.items():
        need(is_number(value) and value > 0, key, "a number above 0", value)
        need(not scaling or raw.get(key, value) == value or key == "rope_theta", key, f"the {value} of {which}")
    need(not scaling or scaling["low_freq_factor"] < scaling["high_freq_factor"], which, "low_freq_factor below high_")
    generation = Path(folder, "generation_config.json")
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    ends = raw.get("eos_token_id") if ends is None else ends
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    for token in [*ends, raw.get("bos_token_id", 0)]:
        need(type(token) is int and token >= 0, "eos_token_id or bos_token_id", "a whole number from 0", token)
    raw |= dict(attention_bias=kind == "qwen2", qk_norm=kind == "qwen3",  # the bias in q, k and v, not in o
                max_position_embeddings=context, rope_theta=theta, rope_scaling=scaling, eos_token_id=tuple(ends))
    return GPTConfig(**{name: raw[name] for name in GPTConfig.__dataclass_fields__ if name in raw})


def read_model_tensors(folder: Path, dtype, device) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json names, each from its own."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        tensors = read_tensors(folder / "model.safetensors", dtype, device)
    else:
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(
                isinstance(file, str) and file == os.path.basename(file) for file in places.values()):
            raise ValueError(f"{index}: needs weight_map, an object from tensors to file names in this folder")
        places, tensors = {plain(name): file for name, file in places.items()}, {}
        for file in sorted(set(places.values())):
            shard = read_tensors(folder / file, dtype, device)
            if wrong := sorted(shard.keys() ^ {name for name in places if places[name] == file}):
                raise ValueError(f"{folder / file}: tensor {wrong[0]} is not where {index.name} says")
            tensors |= shard
    return {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}  # a harmless relic


def load_model(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GPT:
    """The GPT in a Hugging Face model folder (config.json, model.safetensors or shards), in its dtype unless told.

    Raises ValueError, naming file and tensor, for a missing file, a missing or unknown tensor or a wrong shape.
    """
    folder = Path(folder)
    with torch.device("meta"):  # no memory is taken before the file's own
        model = GPT(load_config(folder))
    tensors = read_model_tensors(folder, dtype, device)
    tied, embedding = model.config.tie_word_embeddings, tensors.get("model.embed_tokens.weight")
    head = tensors.setdefault("lm_head.weight", embedding) if tied else None
    check_tensors(folder, tensors, {name: tuple(t.shape) for name, t in model.state_dict().items()})
    if tied and head is not embedding and not torch.equal(head, embedding):  # transformers 4 and 5 differ here
        raise ValueError(f"{folder}: lm_head.weight is not the embedding: tie_word_embeddings must be false")
    model.load_state_dict(tensors, assign=True)
    model.tie()
    return model.eval().requires_grad_(True)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    return model if inner is None else unwrapped(inner)


def save_model(model: GPT, folder: str | Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors so that load_model and transformers read them.

    Raises ValueError for a model with adapters: merge_lora them first, or save_adapter.
    """
    model = unwrapped(model)
    if lora_layers(model):
        raise ValueError("the model has LoRA adapters: merge_lora it before save_model, or use save_adapter")
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.state_dict())
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    kind = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    raw = {**vars(config), "architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind,
           "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "eos_token_id": list(config.eos_token_id),
           "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch."),
           "rope_scaling": config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}}
    del raw["qk_norm"]  # the model type says it
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "generation_config.json", {key: raw[key] for key in ("bos_token_id", "eos_token_id")})
    write_json(folder / "config.json", raw)


# ---- Adapters, in PEFT's format --------------------------------------------------------------------------------------

PREFIX = "base_model.model."  # PEFT wraps the model twice; its files keep the names of that
# Fields of PEFT's config that change nothing here, whatever they hold, and below them those that load_adapter follows.
KNOWN = {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
         "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
         "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
         "lora_alpha", "lora_dropout", "r", "rank_pattern", "target_modules", "use_rslora"}


def save_adapter(model: torch.nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT does; base is the path that the config names.

    alpha is written as it is, never rounded (256·√8 = 724.07...), as plain LoRA: any reader that computes
    lora_alpha / r finds the same s. Raises ValueError for a model without adapters.
    """
    model = unwrapped(model)
    layers = {plain(name): layer for name, layer in lora_layers(model).items()}
    if not layers:
        raise ValueError("the model has no LoRA adapter to save")
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: int(x.alpha) if float(x.alpha).is_integer() else x.alpha for name, x in layers.items()}
    leaves = {name.split(".")[-1] for name in layers}
    exact = not any(isinstance(module, torch.nn.Linear) and name.split(".")[-1] in leaves  # an unadapted layer's name
                    for name, module in model.named_modules())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": [*ranks.values()][0],
              "lora_alpha": [*alphas.values()][0], "lora_dropout": [*layers.values()][0].dropout,
              "rank_pattern": ranks if len({*ranks.values()}) > 1 else {},
              "alpha_pattern": alphas if len({*alphas.values()}) > 1 else {},
              "target_modules": sorted(leaves if exact else layers), "bias": "none", "use_rslora": False,
              "use_dora": False, "inference_mode": True, "init_lora_weights": True}
    tensors = {f"{PREFIX}{name}.lora_{half}.weight": getattr(layer, f"lora_{half}")
               for name, layer in layers.items() for half in "AB"}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(folder, "adapter_model.safetensors"), tensors)
    write_json(Path(folder, "adapter_config.json"), config)


def targeted(config: dict, name: str) -> bool:
    """Whether PEFT adapts the layer of this name, by its check_target_module_exists."""
    def named(by):  # a regular expression for the whole name, or a list of whole components at its end
        return re.fullmatch(by, name) if isinstance(by, str) else any(f".{name}".endswith(f".{end}") for end in by)
    targets, indices = config["target_modules"], config.get("layers_to_transform")
    if str(targets).lower() == ALL_LINEAR:
        targets = r"(.*\.)?(?!lm_head$)[^.]+"
    if not named(targets) or named(config.get("exclude_modules") or []):
        return False
    if indices in (None, []) or isinstance(targets, str) or name in targets:
        return True
    patterns = config.get("layers_pattern") or r".*?\.[^.]*"
    matches = (re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
               for pattern in ([patterns] if isinstance(patterns, str) else patterns))
    index = next((match["index"] for match in matches if match), None)
    return index is not None and int(index) in (indices if isinstance(indices, list) else [indices])


def layer_size(config: dict, name: str) -> tuple[int, float]:
    """r and alpha (s = alpha/r, rsLoRA or not) of the layer: by the first pattern that matches its name, as in PEFT."""
    def find(patterns, otherwise):
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)
    rank, rslora = find(config.get("rank_pattern") or {}, config.get("r")), config.get("use_rslora")
    alpha = find(config.get("alpha_pattern") or {}, config.get("lora_alpha"))
    if type(rank) is not int or rank < 1 or not is_number(alpha) or rslora not in (None, False, True):
        raise ValueError(f"r = {rank!r}, lora_alpha = {alpha!r}, use_rslora = {rslora!r}: want a whole number above 0, "
                         "a number, and true or false")
    return rank, alpha * math.sqrt(rank) if rslora else alpha


def adapter_sizes(config: dict, tensors: dict, modules: dict) -> dict[str, tuple[int, float]]:
    """{layer: (r, alpha)}. ValueError unless the tensors are exactly those that the config and the modules ask for."""
    for key, value in config.items():
        if key not in KNOWN and value and (key, value) not in (("bias", "none"), ("peft_type", "LORA")):
            raise ValueError(f"{key} = {value!r} is not supported")
    if str(config.get("init_lora_weights")).lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ValueError(f"init_lora_weights = {config['init_lora_weights']!r} is not supported: such an adapter "
                         "belongs to a changed base; save it converted to plain LoRA")
    sizes, shapes, targets = {}, {}, config.get("target_modules")
    kinds = torch.nn.Linear if str(targets).lower() == ALL_LINEAR else torch.nn.Module
    for name, module in modules.items():
        key = f"{PREFIX}{name}.lora_{{}}.weight"
        if isinstance(module, kinds) and (key.format("A") in tensors if targets is None else targeted(config, name)):
            if not isinstance(module, torch.nn.Linear):
                raise ValueError(f"tensor {key.format('A')} would not be of a linear layer")
            rank, _ = sizes[name] = layer_size(config, name)
            shapes |= {key.format("A"): (rank, module.in_features), key.format("B"): (module.out_features, rank)}
    check_tensors("adapter_model.safetensors", tensors, shapes)
    if strange := [key for key in tensors if not tensors[key].float().isfinite().all()]:
        raise ValueError(f"tensor {strange[0]} holds numbers that are not finite")
    return sizes


def load_adapter(model: torch.nn.Module, folder: str | Path) -> torch.nn.Module:
    """Injects the PEFT adapter in folder into the model, in float32, and returns the model.

    Raises ValueError, the model untouched, for a config that asks for more than plain LoRA or rsLoRA, a tensor that
    has no place, no partner or the wrong shape, a target without tensors, and a model that has adapters already.
    """
    folder, inner = Path(folder), unwrapped(model)
    config, tensors = read_json(folder / "adapter_config.json"), read_tensors(folder / "adapter_model.safetensors")
    try:
        if lora_layers(model):
            raise ValueError("the model already has LoRA adapters: merge_lora them before another is loaded")
        sizes = adapter_sizes(config, tensors, dict(inner.named_modules()))
        inject_lora(inner, 1, 1.0, targets="|".join(map(re.escape, sizes)), dropout=config.get("lora_dropout") or 0.0)
    except (TypeError, AttributeError, OverflowError, RecursionError, re.error, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from None
    for name, layer in lora_layers(inner).items():
        layer.rank, layer.alpha = sizes[name]  # rank_pattern and alpha_pattern may give each layer its own
        layer.scaling = lora_scaling(*sizes[name])
        layer.lora_A, layer.lora_B = (torch.nn.Parameter(tensors[f"{PREFIX}{name}.lora_{half}.weight"].to(
            layer.base.weight.device, torch.float32, copy=True)) for half in "AB")
    return model


# ---- Tokenizers ------------------------------------------------------------------------------------------------------

# The pre-tokenizers without a pattern of their own: GPT-2's; and with digits cut off first, so that blanks before stay.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"


class HubEncoding(tiktoken.Encoding):
    """A folder's tokenizer as an Encoding: text in its normal form, bytes that the vocabulary lacks dropped."""

    def __init__(self, path: Path, ranks: dict[bytes, int], special: dict[str, int], pattern: str, normal_form=None):
        ids, self.normal_form = [*ranks.values(), *special.values()], normal_form
        if not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) < len(ids):
            raise ValueError(f"{path}: tokens must have whole numbers from 0, no number twice")
        self.end = max(ids) + 1
        missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]  # tiktoken needs every byte
        ranks = ranks | {byte: self.end + i for i, byte in enumerate(missing)}
        super().__init__(path.parent.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.max_token_value = self.end - 1

    def encode_ordinary(self, text: str) -> list[int]:
        text = unicodedata.normalize(self.normal_form, text) if self.normal_form else text
        return [token for token in super().encode_ordinary(text) if token < self.end]


def read_tokenizer_json(path: Path) -> HubEncoding:
    """The byte-level BPE of a tokenizer.json (Llama 3, Qwen, SmolLM2, GPT-2). ValueError for any other."""
    raw = read_json(path)

    def refuse(what):
        raise ValueError(f"{path}: {what}; want byte-level BPE as in Llama 3, Qwen or SmolLM2")

    try:
        model, pre, normalizer = raw["model"], raw["pre_tokenizer"], raw.get("normalizer")
        *first, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
        steps, own = [step["type"] for step in first], last.get("use_regex", True)
        if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or last["type"] != "ByteLevel":
            refuse("its model is no byte-level BPE")
        if last.get("add_prefix_space") or (normalizer or {}).get("type", "NFC") != "NFC" or any(
                model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token")):
            refuse("it has a normalizer, a prefix or an unknown token that is not supported")
        if own and (not steps or steps == ["Digits"] and first[0].get("individual_digits")):
            pattern = DIGITS if steps else GPT2
        elif steps == ["Split"] and not own and (first[0]["behavior"], first[0]["invert"]) in (
                ("Isolated", False), ("Removed", True)):
            pattern = first[0]["pattern"]["Regex"]
        else:
            refuse("its pre-tokenizer is none of the known")
        special = {token["content"]: token["id"] for token in raw.get("added_tokens") or []}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2 writes these bytes as themselves
        byte = dict(zip(map(chr, [*plain, *range(256, 324)]), [*plain, *sorted(set(range(256)) - set(plain))]))
        ranks = {bytes(byte[c] for c in text): i for text, i in model["vocab"].items() if text not in special}
        merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        merges = [tuple(bytes(byte[c] for c in half) for half in merge) for merge in merges]
        check_merges(ranks, merges, refuse)
        processors = [raw.get("post_processor") or {}]
        processors += processors[0].get("processors") or []
        template = next((step["single"][0] for step in processors if step.get("type") == "TemplateProcessing"), {})
        encoding = HubEncoding(path, ranks, special, pattern, "NFC" if normalizer else None)
        encoding.bos = special[template["SpecialToken"]["id"]] if "SpecialToken" in template else None
        return encoding
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        refuse(f"not as the tokenizers library writes it ({type(error).__name__}: {error})")


def check_merges(ranks: dict[bytes, int], merges: list[tuple[bytes, bytes]], refuse) -> None:
    """Refuses merges that do not follow from ranks: tiktoken always joins the two neighbours with the lowest rank."""
    pairs, last = {}, -1
    for a, b in merges:
        if ranks.get(a + b, -1) < last or a not in ranks or b not in ranks:
            refuse(f"the merge {a!r} {b!r} is out of the order of the ids")
        last = ranks[a + b]
        pairs.setdefault(a + b, set()).add((a, b))
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            lowest = min(range(len(joined)), key=joined.__getitem__)
            if joined[lowest] >= rank:
                break
            parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
        if len(parts) > 1 and tuple(parts) not in pairs.get(token, ()):
            refuse(f"the token {token!r} is not what its merges make of its bytes in the order of the ids")


def load_tokenizer(folder: str | Path) -> tiktoken.Encoding:
    """The tokenizer of a model folder: a rank file (.tiktoken or tokenizer.model) with spec.json, else tokenizer.json.

    A rank file has a line a token, base64 of its bytes and its rank; spec.json has pat_str and the special_tokens with
    their ids. tiktoken's own loader caches by path and would serve a stale file. ValueError for anything else.
    """
    folder = Path(folder)
    if (folder / "tokenizer.json").is_file() and not (folder / "spec.json").is_file():
        return read_tokenizer_json(folder / "tokenizer.json")
    files = sorted(folder.glob("*.tiktoken")) or sorted(folder.glob("tokenizer.model"))
    if len(files) != 1:
        raise ValueError(f"{folder}: has {len(files)} of *.tiktoken, tokenizer.model and tokenizer.json, not one")
    ranks = {}
    for number, line in enumerate(files[0].read_bytes().strip().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"{files[0]}, line {number}: no base64 of a token, rank (SentencePiece?)") from None
    spec = read_json(folder / "spec.json")
    if not isinstance(spec.get("pat_str"), str) or not isinstance(spec.get("special_tokens"), dict):
        raise ValueError(f"{folder / 'spec.json'}: needs pat_str, a string, and special_tokens, an object")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{files[0]}: lacks the single byte {missing[0]:#04x}, so that some texts have no tokens")
    return HubEncoding(files[0], ranks, spec["special_tokens"], spec["pat_str"])


def copy_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copies the files of tokenizer and generation byte for byte, so that a saved model folder is complete."""
    for path in Path(source).iterdir():
        if COPIED.fullmatch(path.name):
            shutil.copyfile(path, Path(folder, path.name + ".tmp"))
            os.replace(Path(folder, path.name + ".tmp"), Path(folder, path.name))
