"""What Hugging Face and PEFT users have goes in and comes out: model folders, adapters, names on the hub (tokenizers
stand in tokens.py).

No pickle is read or written. Every file is written under a temporary name and then renamed, or is as it was before.
"""

import functools
import json
import math
import os
import re
import time
from contextlib import contextmanager
from pathlib import Path

import regex
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lora_alpha import ALL_LINEAR, GPT, GPTConfig, inject_lora, lora_layers, lora_scaling
from tokens import load_tokenizer, naming, read_file, read_json  # noqa: F401  (load_tokenizer: hf's, to those outside)

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}  # names in a compiled model's
RELIC = "rotary_emb.inv_freq"  # a tensor of old folders, which is computed
# The files of tokenizer and generation, which a model that is made of another keeps.
COPIED = re.compile(r".+\.(tiktoken|jinja)|tokenizer\.model|merges\.txt|(spec|tokenizer|tokenizer_config|vocab|"
                    r"special_tokens_map|added_tokens|chat_template|generation_config)\.json")
# What transformers takes where config.json lacks the key.
DEFAULTS = {"llama": dict(max_position_embeddings=2048, bos_token_id=1, eos_token_id=2),
            "mistral": dict(max_position_embeddings=131072, bos_token_id=1, eos_token_id=2, num_key_value_heads=8,
                            sliding_window=4096),
            "qwen2": dict(max_position_embeddings=32768, num_key_value_heads=32),
            "qwen3": dict(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)}

# ---- The hub ---------------------------------------------------------------------------------------------------------

FETCHED = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.jinja"]
# What to do where that fails, by the name of huggingface_hub's error, the finer before the coarser.
CURES = {"ImportError": "a model on the hub needs huggingface_hub: pip install it",
         "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the download of what is not in the hub's cache: unset it",
         "GatedRepoError": "its owner asks for consent: give it on huggingface.co, then run hf auth login",
         "RepositoryNotFoundError": "the hub has no such model; if it is a private one, run hf auth login",
         "RevisionNotFoundError": "the hub has no such revision of it: see its page on huggingface.co",
         "LocalEntryNotFoundError": "huggingface.co cannot be reached: connect to a network, or give a folder"}


def resolve(name: str | Path, flag: str) -> Path:
    """The folder that a flag names, or a model or adapter on the Hugging Face hub: org/name or org/name@revision.

    From the hub's cache without a network call where its weights are whole, else downloaded. ValueError says what to
    do. A name whose first part is a folder here, such as out/typo, is a path, unless it has an @.
    """
    repo, _, revision = str(name).partition("@")
    if Path(name).exists():
        return Path(name)
    if not re.fullmatch(r"(?a)\w[\w.-]*/\w[\w.-]*(@.+)?", str(name)) or not revision and Path(name).parent.is_dir():
        raise ValueError(f"{flag} {name}: there is no such file or folder")
    for local in (True, False):
        try:
            from huggingface_hub import snapshot_download  # half a second
            folder = Path(snapshot_download(  # no folders in it, and no second copy of Mistral's weights
                repo, revision=revision or None, local_files_only=local, allow_patterns=FETCHED,
                ignore_patterns=["*/*", "consolidated*"]))
            index, adapter = folder / "model.safetensors.index.json", (folder / "adapter_config.json").is_file()
            files = read_json(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
            files = ["adapter_model.safetensors"] if adapter else files
            missing = [file for file in files if not (folder / file).is_file()]
            missing += [] if adapter or any(folder.glob("*token*")) else ["tokenizer.json"]
            if not missing:
                return folder
            why = f"the hub, or its cache where there is no network, has no {missing[0]} of it (a pickle is no use)"
        except Exception as error:  # those of the HTTP library beneath among them
            names = [kind.__name__ for e in (error.__cause__, error) for kind in type(e).__mro__]
            why = next((cure for kind, cure in CURES.items() if kind in names), f"it cannot be downloaded ({error})")
    raise ValueError(f"{flag} {name}: there is no such folder here, and {why}")


# ---- Model folders ---------------------------------------------------------------------------------------------------


def is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e38  # no bool, nothing beyond float32


@contextmanager
def replacing(path: str | Path):
    """A temporary name to write to: renamed to path when it is whole and on the disk, removed when it is not."""
    temporary = Path(f"{path}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(temporary.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def write_json(path: str | Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors = {plain(name): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; safetensors leaves a file to its owner alone
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)


def read_tensors(path: str | Path, dtype=None, device="cpu", shapes: dict | None = None) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors, memory-mapped, floats in dtype; opened anew for each, so that cast pages go.

    shapes: {name: shape} of the floats that may stand in it. ValueError, before one is read, for another.
    """
    if not os.path.isfile(path):
        pickles = [file.name for file in Path(path).parent.glob("*.bin")]
        raise ValueError(f"{path}: there is no such file" + "".join(
            f"; {name} is a pickle, which is never loaded: save it as safetensors" for name in sorted(pickles)[:1]))
    with naming(f"{path}: no safetensors file that can be read", (SafetensorError, OSError)):
        file, keys = safe_open(path, framework="pt"), {}
        for key in sorted(file.keys()):
            name, kind, shape = plain(key), file.get_slice(key).get_dtype(), tuple(file.get_slice(key).get_shape())
            if name in keys or shapes is not None and name not in shapes and not name.endswith(RELIC):
                raise ValueError(f"{path}: tensor {key} is of no layer here, or of one that has it already")
            if shapes and name in shapes and (shape != shapes[name] or kind not in ("F64", "F32", "F16", "BF16")):
                raise ValueError(f"{path}: tensor {name} holds {kind} of shape {shape}, not floats of {shapes[name]}")
            keys[name] = key
        tensors = ((name, safe_open(path, framework="pt").get_tensor(key)) for name, key in keys.items()
                   if not name.endswith(RELIC))
        return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in tensors}


def check_tensors(where, tensors: dict[str, torch.Tensor], names) -> None:
    """ValueError unless all of the names are there, and all numbers finite."""
    for name in [*names, *tensors]:
        if name not in tensors:
            raise ValueError(f"{where}: tensor {name} is missing")
        if not all(abs(end.item()) <= torch.finfo(torch.float32).max for end in tensors[name].aminmax()):  # or NaN
            raise ValueError(f"{where}: tensor {name} holds numbers that are not finite")


def need(right: bool, key: str, value, want) -> None:
    """ValueError, naming the key and its value in config.json, unless the value is right."""
    if not right:
        raise ValueError(f"{key} = {value!r} is not supported: {want} is")


def load_config(folder: str | Path) -> GPTConfig:
    """config.json and generation_config.json's end tokens. ValueError for what this GPT would compute wrongly."""
    path = Path(folder, "config.json")
    raw = read_json(path)
    kind = str(raw.get("model_type"))
    raw = {**DEFAULTS.get(kind, {}), **raw}
    raw = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0} | {k: value for k, value in raw.items() if value is not None}
    with naming(path):
        need(kind in DEFAULTS, "model_type", raw.get("model_type"), f"one of {', '.join(DEFAULTS)}")
        optional = set() if kind == "qwen3" else {"num_key_value_heads", "head_dim"}
        for key, bits in dict(vocab_size=24, hidden_size=20, intermediate_size=20, num_hidden_layers=8, head_dim=20,
                              num_attention_heads=20, num_key_value_heads=20, max_position_embeddings=30).items():
            fits = key in raw and type(raw[key]) is int and 0 < raw[key] <= 2**bits or key in optional - raw.keys()
            need(fits, key, raw.get(key), f"a whole number from 1 to {2**bits}")
        for key, only in {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None,
                          "use_sliding_window": False, "is_causal": True, "partial_rotary_factor": 1,
                          "layer_types": ["full_attention"] * raw["num_hidden_layers"]}.items():
            need(raw.get(key, only) == only, key, raw.get(key), only)
        tied = raw.get("tie_word_embeddings", False)
        need(tied in (False, True), "tie_word_embeddings", tied, "true or false")
        window = raw.get("sliding_window") if kind == "mistral" else None
        need(window is None or type(window) is int and window > 0, "sliding_window", window, "null or 1 and more")
        generation = Path(folder, "generation_config.json")
        ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
        ends = raw.get("eos_token_id", []) if ends is None else ends
        ends = ends if isinstance(ends, list) else [ends]
        for token in [*ends, raw.get("bos_token_id", 0)]:
            need(type(token) is int and token >= 0, "eos_token_id or bos_token_id", token, "a whole number from 0")
        theta, scaling = read_rope(raw)
        raw |= dict(attention_bias=kind == "qwen2",  # the bias in q, k and v, not in o
                    qk_norm=kind == "qwen3", rope_theta=theta, rope_scaling=scaling,
                    max_position_embeddings=min(raw["max_position_embeddings"], window or 2**30),  # full attention
                    eos_token_id=tuple(ends))
        return GPTConfig(**{name: raw[name] for name in GPTConfig.__dataclass_fields__ if name in raw})


def read_rope(raw: dict) -> tuple[float, dict | None]:
    """theta, and Llama 3's frequency scaling or None; transformers 5's rope_parameters wins over rope_scaling."""
    which = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    rope = raw.get(which) or {}
    one = isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values())
    need(one and rope.get("partial_rotary_factor", 1) == 1, which, rope, "one object, for all dimensions and layers")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    need(kind in ("default", "llama3"), which, rope, "the type default or llama3")
    theta, names = rope.get("rope_theta", raw["rope_theta"]), (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = {name: rope.get(name) for name in names if kind == "llama3"}
    for key, value in {"rope_theta": theta, "rms_norm_eps": raw["rms_norm_eps"], **scaling}.items():
        need(is_number(value) and value > 0, key, value, "a number above 0")
    for key, value in scaling.items():
        need(raw.get(key, value) == value, key, raw.get(key), f"the {value} of {which}")
    need(not scaling or scaling["low_freq_factor"] < scaling["high_freq_factor"], which, rope, "low below high_freq")
    return theta, scaling or None


def read_model_tensors(folder: Path, dtype, device, shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json names, each from its own."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return read_tensors(folder / "model.safetensors", dtype, device, shapes)
    tensors, places = {}, read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
            isinstance(file, str) and file == os.path.basename(file) for file in places.values()):
        raise ValueError(f"{index}: needs weight_map, an object from tensors to file names in this folder")
    for file in sorted(set(places.values())):
        shard = read_tensors(folder / file, dtype, device, shapes)
        named = {plain(name) for name in places if places[name] == file and not name.endswith(RELIC)}
        if wrong := sorted(shard.keys() ^ named):
            raise ValueError(f"{folder / file}: tensor {wrong[0]} is not where {index.name} says")
        tensors |= shard
    return tensors


class Unset(torch.overrides.TorchFunctionMode):
    """Leaves new weights unset: a file replaces them (and nn.init.normal_ on meta loads torch's compiler, 2 s)."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return kwargs["tensor"] if function is torch.nn.init.normal_ else function(*args, **(kwargs or {}))


def load_model(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GPT:
    """The GPT in a model folder, in its dtype unless told. ValueError, naming the file or tensor that does not fit."""
    with torch.device("meta"), Unset():  # no memory is taken before the file's own
        model = GPT(load_config(folder))
    shapes, tied = {name: tuple(t.shape) for name, t in model.state_dict().items()}, model.config.tie_word_embeddings
    tensors = read_model_tensors(Path(folder), dtype, device, shapes)
    check_tensors(folder, tensors, [name for name in shapes if name != "lm_head.weight" or not tied])
    embedding = tensors["model.embed_tokens.weight"]
    if tied and not torch.equal(tensors.setdefault("lm_head.weight", embedding), embedding):  # transformers 4 and 5
        raise ValueError(f"{folder}: lm_head.weight is not the embedding: tie_word_embeddings must be false")
    model.load_state_dict(tensors, assign=True)
    model.tie()
    return model.eval().requires_grad_(True)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    return model if inner is None else unwrapped(inner)


def save_model(model: GPT, folder: str | Path, base: str | Path | None = None) -> None:
    """Writes a folder that load_model and transformers read, config.json last; with all that base's says beside the
    weights, and its tokenizer, where base is given. ValueError for a model with adapters: merge_lora first."""
    model = unwrapped(model)
    if lora_layers(model):
        raise ValueError("the model has LoRA adapters: merge_lora it before save_model, or use save_adapter")
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    kind = "qwen3" if config.qk_norm else "qwen2" if config.attention_bias else "llama"
    raw = {**vars(config), "architectures": [f"{kind.capitalize()}ForCausalLM"], "model_type": kind,
           "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "eos_token_id": list(config.eos_token_id),
           "rope_scaling": config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}}
    del raw["qk_norm"]  # the model type says it
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "generation_config.json", {key: raw[key] for key in ("bos_token_id", "eos_token_id")})
    if base:
        copy_tokenizer(base, folder)  # its generation_config.json too
        raw = read_json(Path(base, "config.json"))
        raw.pop("dtype", None)  # transformers 5's name for torch_dtype, which it reads as well
    raw["torch_dtype"] = str(model.lm_head.weight.dtype).removeprefix("torch.")
    write_json(folder / "config.json", raw)


def copy_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copies the files of tokenizer and generation byte for byte, so that a saved model folder is complete.

    ValueError for a link out of the folder, which would take a stranger's choice of file along; the hub's are fine."""
    source = Path(source).resolve()
    for path in (path for path in source.iterdir() if COPIED.fullmatch(path.name)):
        place = Path(os.path.realpath(path))
        if not any(place.is_relative_to(inside) for inside in (source, source.parent.parent / "blobs")):
            raise ValueError(f"{path}: a link out of its folder: put the file itself there")
        with replacing(Path(folder, path.name)) as temporary:
            temporary.write_bytes(read_file(path))


# ---- Adapters, in PEFT's format --------------------------------------------------------------------------------------

PREFIX = "base_model.model."  # PEFT wraps the model twice; its files keep the names of that
# Fields of PEFT's config that change nothing here, whatever they hold, and below them those that load_adapter follows.
KNOWN = {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
         "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
         "alpha_pattern", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform",
         "lora_alpha", "lora_dropout", "r", "rank_pattern", "target_modules", "use_rslora"}


def save_adapter(model: torch.nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Writes a PEFT folder, alpha unrounded (256·√8 = 724.07...); base: its model's folder or name on the hub."""
    model = unwrapped(model)
    layers = {plain(name): layer for name, layer in lora_layers(model).items()}
    if not layers:
        raise ValueError("the model has no LoRA adapter to save")
    ranks = {name: layer.rank for name, layer in layers.items()}
    alphas = {name: int(x.alpha) if float(x.alpha).is_integer() else x.alpha for name, x in layers.items()}
    leaves = {name.split(".")[-1] for name in layers}
    exact = not any(isinstance(module, torch.nn.Linear) and name.split(".")[-1] in leaves  # an unadapted layer's name
                    for name, module in model.named_modules())
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
              "r": [*ranks.values()][0], "lora_alpha": [*alphas.values()][0],
              "target_modules": sorted(leaves if exact else layers)}
    # What is at its default is left out: a PEFT that does not know a key refuses the whole file.
    patterns, dropout = {"rank_pattern": ranks, "alpha_pattern": alphas}, [*layers.values()][0].dropout
    config |= {key: sizes for key, sizes in patterns.items() if len({*sizes.values()}) > 1}
    config |= {"lora_dropout": dropout} if dropout else {}
    tensors = {f"{PREFIX}{name}.lora_{half}.weight": getattr(layer, f"lora_{half}")
               for name, layer in layers.items() for half in "AB"}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(folder, "adapter_model.safetensors"), tensors)
    write_json(Path(folder, "adapter_config.json"), config)


PATIENCE = 4  # seconds for all of an adapter's regular expressions
compiled = functools.lru_cache(10_000)(regex.compile)  # regex itself keeps 500


def match(pattern: str, name: str, end: float):
    """re.match, by which PEFT goes, of regex, which can stop. ValueError where it takes beyond the time end."""
    with naming(f"the pattern {pattern[:60]!r}", (regex.error, TimeoutError)):
        if time.monotonic() > end or len(pattern) > 100_000:
            raise TimeoutError("it or all of them take too long: name the layers instead")
        return compiled(pattern).match(name, timeout=PATIENCE / 2)


def targeted(config: dict, name: str, end: float = math.inf) -> bool:
    """Whether PEFT adapts the layer of this name, by its check_target_module_exists."""
    def named(by):  # a regular expression for the whole name, or a list of whole components at its end
        return match(rf"(?:{by})\Z", name, end) if isinstance(by, str) else any(
            f".{name}".endswith(f".{last}") for last in by)
    targets, indices = config["target_modules"], config.get("layers_to_transform")
    if str(targets).lower() == ALL_LINEAR:
        targets = r"(.*\.)?(?!lm_head$)[^.]+"
    if not named(targets) or named(config.get("exclude_modules") or []):
        return False
    if indices in (None, []) or isinstance(targets, str) or name in targets:
        return True
    patterns = config.get("layers_pattern") or r".*?\.[^.]*"
    found = (match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name, end)
             for pattern in ([patterns] if isinstance(patterns, str) else patterns))
    first = next(filter(None, found), None)
    return bool(first) and int(first["index"]) in (indices if isinstance(indices, list) else [indices])


def layer_size(config: dict, name: str, end: float = math.inf) -> tuple[int, float]:
    """r and alpha (s = alpha/r, rsLoRA or not) of the layer: by the first pattern that matches its name, as in PEFT."""
    def find(key, size):
        patterns = (config.get(key) or {}).items()
        return next((value for by, value in patterns if match(rf"(.*\.)?({by})$", name, end)), config.get(size))
    rank, alpha, rslora = find("rank_pattern", "r"), find("alpha_pattern", "lora_alpha"), config.get("use_rslora")
    if type(rank) is not int or rank < 1 or not is_number(alpha) or rslora not in (None, False, True):
        raise ValueError(f"r, lora_alpha, use_rslora = {rank!r}, {alpha!r}, {rslora!r}: want an int, a number, a bool")
    return rank, alpha * math.sqrt(rank) if rslora else alpha


def adapter_sizes(config: dict, modules: dict) -> dict[str, tuple[int, float]]:
    """{layer: (r, alpha)} of the layers that the config adapts, or may. ValueError for what would be read wrongly."""
    for key, value in config.items():
        if key not in KNOWN and value and (key, value) not in (("bias", "none"), ("peft_type", "LORA")):
            raise ValueError(f"{key} = {value!r} is not supported")
    if str(config.get("init_lora_weights")).lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ValueError(f"init_lora_weights = {config['init_lora_weights']!r} changed the base: save as plain LoRA")
    targets, end = config.get("target_modules"), time.monotonic() + PATIENCE
    kinds = torch.nn.Linear if targets is None or str(targets).lower() == ALL_LINEAR else torch.nn.Module
    names = [name for name, module in modules.items() if isinstance(module, kinds) and (
        targets is None or targeted(config, name, end))]
    if others := [name for name in names if not isinstance(modules[name], torch.nn.Linear)]:
        raise ValueError(f"tensor {PREFIX}{others[0]}.lora_A.weight would not be of a linear layer")
    return {name: layer_size(config, name, end) for name in names}


def load_adapter(model: torch.nn.Module, folder: str | Path) -> torch.nn.Module:
    """Injects a folder's PEFT adapter, LoRA or rsLoRA, in float32. ValueError, the model untouched, for others."""
    folder, inner = Path(folder), unwrapped(model)
    config, modules = read_json(folder / "adapter_config.json"), dict(inner.named_modules())
    if lora_layers(model):
        raise ValueError("the model already has LoRA adapters: merge_lora them before another is loaded")
    path, half = folder / "adapter_model.safetensors", f"{PREFIX}{{}}.lora_{{}}.weight".format
    with naming(folder, (ValueError, TypeError, AttributeError, OverflowError, RecursionError)):  # of a value's type
        sizes = adapter_sizes(config, modules)
        tensors = read_tensors(path, shapes={half(name, letter): shape for name, (rank, _) in sizes.items() for
                                             letter, shape in (("A", (rank, modules[name].in_features)),
                                                               ("B", (modules[name].out_features, rank)))})
        if config.get("target_modules") is None:  # the tensors tell
            sizes = {name: size for name, size in sizes.items() if {half(name, "A"), half(name, "B")} & tensors.keys()}
        check_tensors(path, tensors, [half(name, letter) for name in sizes for letter in "AB"])
        inject_lora(inner, 1, 1.0, targets="|".join(map(re.escape, sizes)), dropout=config.get("lora_dropout") or 0.0)
    for name, layer in lora_layers(inner).items():
        layer.rank, layer.alpha = sizes[name]  # rank_pattern and alpha_pattern may give each layer its own
        layer.scaling = lora_scaling(*sizes[name])
        layer.lora_A, layer.lora_B = (torch.nn.Parameter(tensors[half(name, letter)].to(
            layer.base.weight.device, torch.float32, copy=True)) for letter in "AB")
    return model
