"""What Hugging Face and PEFT users have goes in and comes out: model folders, adapters, tokenizers.

Read top to bottom: model folders → adapters → tokenizers, chat templates. No pickle is read or written. Every file is
written under a temporary name and then renamed, so that what was there before survives a failed write.
"""

import base64
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import tiktoken
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lora_alpha import GPT, GPTConfig, inject_lora, lora_layers

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
    """A finite int or float, of a size that float arithmetic can hold; no bool."""
    return type(value) in (int, float) and abs(value) < 1e300


def write_json(path: str | Path, value: dict) -> None:
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes((json.dumps(value, indent=2) + "\n").encode())
    os.replace(temporary, path)


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    temporary = Path(f"{path}.tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary,
              metadata={"format": "pt"})
    os.replace(temporary, path)


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None


def load_config(folder: str | Path) -> GPTConfig:
    """config.json (and generation_config.json's end tokens) of a Llama, Mistral or Qwen2 folder as a GPTConfig.

    Reads rope_theta and rope_scaling, or transformers 5's rope_parameters, which wins where both stand. A sliding
    window limits the context. Raises ValueError for a model type or a feature that this GPT would compute wrongly.
    """
    folder = Path(folder)
    raw = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}  # transformers' defaults
    raw.update((key, value) for key, value in read_json(folder / "config.json").items() if value is not None)

    def refuse(key, why):
        raise ValueError(f"{folder / 'config.json'}: {key} = {raw.get(key)!r} is not supported: {why}")

    if raw.get("model_type") not in ("llama", "mistral", "qwen2"):
        refuse("model_type", "llama, mistral and qwen2 are")
    if raw.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "the MLP is SwiGLU")
    for key in ("attention_bias", "mlp_bias", "quantization_config", "use_sliding_window"):
        if raw.get(key):
            refuse(key, "this GPT has none")
    raw["attention_bias"] = raw["model_type"] == "qwen2"  # in q, k and v; transformers' attention_bias has o's as well
    window = raw.get("sliding_window") if raw["model_type"] == "mistral" else None
    if window is not None and (type(window) is not int or window < 1):
        refuse("sliding_window", "it must be a whole number above 0, or null")
    if window is not None:  # up to there attention is full
        raw["max_position_embeddings"] = min(raw["max_position_embeddings"], window)
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(raw.get(key) or {}, dict):
            refuse(key, "it must be an object or null")
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    theta = rope.pop("rope_theta", raw["rope_theta"])
    if kind not in ("default", "llama3"):
        refuse("rope_parameters" if raw.get("rope_parameters") else "rope_scaling", "only default and llama3 are")
    rope_keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for key, value in [("rope_theta", theta), ("rms_norm_eps", raw["rms_norm_eps"]),
                       *((key, rope.get(key)) for key in rope_keys if kind == "llama3")]:
        if not is_number(value) or value <= 0:
            raise ValueError(f"{folder / 'config.json'}: {key} = {value!r} must be a number above 0")
    generation = folder / "generation_config.json"
    ends = read_json(generation).get("eos_token_id") if generation.is_file() else None
    ends = raw.get("eos_token_id") if ends is None else ends
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    for token in [*ends, raw.get("bos_token_id", 0)]:
        if type(token) is not int or token < 0:
            raise ValueError(f"{folder}: the token id {token!r} in config.json or generation_config.json is none")
    if type(raw.get("num_hidden_layers")) is int and raw["num_hidden_layers"] > 1000:
        refuse("num_hidden_layers", "no model of this kind has so many layers")
    names = GPTConfig.__dataclass_fields__.keys() - {"rope_theta", "rope_scaling", "eos_token_id"}
    known = {name: raw[name] for name in names if name in raw}
    needed = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    if lacking := [name for name in needed if name not in known]:
        raise ValueError(f"{folder / 'config.json'}: lacks {lacking[0]}")
    scaling = rope if kind == "llama3" else None
    return GPTConfig(**known, rope_theta=theta, rope_scaling=scaling, eos_token_id=tuple(ends))


def read_model_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json names, each from its own."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        tensors = read_tensors(folder / "model.safetensors")
    else:
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(
                isinstance(file, str) and file == os.path.basename(file) for file in places.values()):
            raise ValueError(f"{index}: needs weight_map, an object from tensors to file names in this folder")
        tensors = {}
        for file in sorted(set(places.values())):
            shard = read_tensors(folder / file)
            for name in sorted(shard.keys() | {name for name in places if places[name] == file}):
                if name not in shard or places.get(name) != file:
                    raise ValueError(f"{folder / file}: tensor {name} is " + ("missing" if name not in shard else
                                                                              f"not where {index.name} says"))
            tensors |= shard
    return {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}  # a harmless relic


def load_model(folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> GPT:
    """The GPT in a Hugging Face model folder (config.json, model.safetensors or shards), in its dtype unless told.

    Raises ValueError, naming file and tensor, for a missing file, a missing or unknown tensor or a wrong shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    with torch.device("meta"):  # no memory is taken before the file's own
        model = GPT(load_config(folder))
    tensors = read_model_tensors(folder)
    expected = model.state_dict()
    if model.config.tie_word_embeddings:  # as transformers does: the embedding counts, whatever lm_head the file holds
        expected.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise ValueError(f"{folder / 'model.safetensors'}: tensor {name} is "
                             + ("missing" if name in expected else "not one of this model's"))
        if tensors[name].shape != expected[name].shape:
            raise ValueError(f"{folder / 'model.safetensors'}: tensor {name} has shape {tuple(tensors[name].shape)}, "
                             f"config.json says {tuple(expected[name].shape)}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{folder / 'model.safetensors'}: tensor {name} holds {tensors[name].dtype}, not floats")
    tensors = {name: tensor.to(device, dtype or tensor.dtype) for name, tensor in tensors.items()}
    if model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    model.tie()
    return model.requires_grad_(True)


def save_model(model: GPT, folder: str | Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors so that load_model and transformers read them.

    Raises ValueError for a model with adapters: merge_lora them first, or save_adapter.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps around a model
    if lora_layers(model):
        raise ValueError("the model has LoRA adapters: merge_lora it before save_model, or use save_adapter")
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.state_dict())
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    kind = ("qwen2", "Qwen2ForCausalLM") if config.attention_bias else ("llama", "LlamaForCausalLM")
    raw = {**vars(config), "architectures": [kind[1]], "model_type": kind[0], "hidden_act": "silu",
           "attention_bias": False, "mlp_bias": False, "eos_token_id": list(config.eos_token_id),
           "torch_dtype": str(model.lm_head.weight.dtype).removeprefix("torch.")}
    if config.rope_scaling:
        raw["rope_scaling"] = {"rope_type": "llama3", **config.rope_scaling}
    write_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "generation_config.json",
               {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_id)})
    write_json(folder / "config.json", raw)


# ---- Adapters, in PEFT's format --------------------------------------------------------------------------------------

PREFIX = "base_model.model."  # PEFT wraps the model twice; its files keep the names of that
# Fields of PEFT's config that change nothing here, whatever they hold.
HARMLESS = {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode",
            "init_lora_weights", "lora_alpha", "lora_dropout", "loftq_config", "megatron_core", "peft_type",
            "peft_version", "qalora_group_size", "r", "revision", "runtime_config", "target_modules", "task_type",
            "use_rslora"}


def save_adapter(model: torch.nn.Module, folder: str | Path, base: str | None = None) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT does; base is the path that the config names.

    alpha is written as it is, never rounded (256·√8 = 724.07...), as plain LoRA: any reader that computes
    lora_alpha / r finds the same s. Raises ValueError for a model without adapters.
    """
    layers = lora_layers(getattr(model, "_orig_mod", model))  # torch.compile's wrapper would put its name into the keys
    if not layers:
        raise ValueError("the model has no LoRA adapter to save")
    first = next(iter(layers.values()))
    leaves = {name.split(".")[-1] for name in layers}
    plain = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    exact = not any(name.split(".")[-1] in leaves for name in plain)  # no unadapted layer is called the same
    alpha = int(first.alpha) if float(first.alpha).is_integer() else first.alpha
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": first.rank,
              "lora_alpha": alpha, "lora_dropout": first.dropout, "target_modules": sorted(leaves if exact else layers),
              "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "inference_mode": True,
              "init_lora_weights": True, "modules_to_save": None}
    tensors = {f"{PREFIX}{name}.lora_{half}.weight": getattr(layer, f"lora_{half}")
               for name, layer in layers.items() for half in "AB"}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_tensors(Path(folder, "adapter_model.safetensors"), tensors)
    write_json(Path(folder, "adapter_config.json"), config)


def load_adapter(model: torch.nn.Module, folder: str | Path) -> torch.nn.Module:
    """Injects the PEFT adapter in folder into the model, in float32, and returns the model.

    The layers are those of the file's tensors. Raises ValueError, the model untouched, for a config that asks for
    more than plain LoRA or rsLoRA, or a tensor that has no place, no partner or the wrong shape.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: peft_type is {config.get('peft_type')!r}, only LORA is supported")
    for key, value in config.items():
        if key not in HARMLESS and value and (key, value) != ("bias", "none"):
            raise ValueError(f"{folder / 'adapter_config.json'}: {key} = {value!r} is not supported")
    if str(config.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq")):
        raise ValueError(f"{folder / 'adapter_config.json'}: init_lora_weights = {config['init_lora_weights']!r} is "
                         "not supported: such an adapter belongs to a changed base; save it converted to plain LoRA")
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout") or 0.0
    if type(rank) is not int or rank < 1 or not is_number(alpha) or not is_number(dropout):
        raise ValueError(f"{folder / 'adapter_config.json'}: r = {rank!r}, lora_alpha = {alpha!r}, "
                         f"lora_dropout = {dropout!r}: want three numbers, r a whole one above 0")
    alpha = alpha * rank**0.5 if config.get("use_rslora") else alpha
    tensors = read_tensors(folder / "adapter_model.safetensors")
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in tensors}
    modules = dict(model.named_modules())
    for name in sorted(names):
        layer = modules.get(name)
        for half in "AB":
            key = f"{PREFIX}{name}.lora_{half}.weight"
            if not isinstance(layer, torch.nn.Linear):
                raise ValueError(f"{folder}: the adapter's tensor {key} has no layer in this model")
            if key not in tensors:
                raise ValueError(f"{folder}: the adapter's tensor {key} is missing")
            shape = (rank, layer.in_features) if half == "A" else (layer.out_features, rank)
            if tensors[key].shape != shape:
                raise ValueError(f"{folder}: {key} has shape {tuple(tensors[key].shape)}, the model and r want {shape}")
    if len(tensors) != 2 * len(names) or not names:
        raise ValueError(f"{folder}: the adapter's file holds other tensors than a lora_A and a lora_B for each layer")
    inject_lora(model, rank, alpha, targets=sorted(names), dropout=dropout)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.lora_A.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"])
            layer.lora_B.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"])
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
        raise ValueError(f"{folder}: holds {len(files)} tokenizer files (*.tiktoken, tokenizer.model or "
                         "tokenizer.json), not one")
    ranks = {}
    for number, line in enumerate(files[0].read_bytes().splitlines(), 1):
        try:
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"{files[0]}, line {number}: not base64 of a token and its rank (SentencePiece is not "
                             "supported)") from None
    spec = read_json(folder / "spec.json")
    if not isinstance(spec.get("pat_str"), str) or not isinstance(spec.get("special_tokens"), dict):
        raise ValueError(f"{folder / 'spec.json'}: needs pat_str, a string, and special_tokens, an object")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(f"{files[0]}: lacks the single byte {missing[0]:#04x}, so that some texts have no tokens")
    return HubEncoding(files[0], ranks, spec["special_tokens"], spec["pat_str"])


# The turns of a folder that has a rank file alone, told by a special token: Llama 3's and ChatML's.
TURNS = {
    "<|start_header_id|>": "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
                           "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
                           "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
    "<|im_start|>": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                    "{% endfor %}{{ '<|im_start|>assistant\\n' }}",
}


def load_chat(folder: str | Path, encoding: tiktoken.Encoding) -> Callable[[list[dict]], list[int]] | None:
    """A function from messages (role, content) to tokens, up to where the assistant speaks; None without a template.

    The folder's template, rendered in a sandbox as transformers does, but without today's date: a prompt is the same
    tomorrow. Special tokens in a message are just text. Raises ValueError for a template that cannot be rendered.
    """
    path, file = Path(folder, "tokenizer_config.json"), Path(folder, "chat_template.jinja")
    config = read_json(path) if path.is_file() else {}
    guess = next((turns for token, turns in TURNS.items() if token in encoding.special_tokens_set), None)
    source = file.read_bytes() if file.is_file() else config.get("chat_template") if path.is_file() else guess
    if not source:
        return None
    special = "|".join(map(re.escape, sorted(encoding.special_tokens_set, key=len, reverse=True))) or "(?!)"
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])

    def encode(messages: list[dict]) -> list[int]:
        said = "".join(message["content"] for message in messages)
        mark = next(chr(i) for i in range(0xE000, 0xF900) if chr(i) not in said)  # breaks up what looks special
        broken = [m | {"content": re.sub(special, lambda t: t[0][0] + mark + t[0][1:], m["content"])} for m in messages]
        try:
            text = source.decode() if isinstance(source, bytes) else source
            if isinstance(text, list):  # several, by name
                text = {entry["name"]: entry["template"] for entry in text}["default"]
            names = {name: token["content"] if isinstance(token, dict) else token for name, token in config.items()
                     if name.endswith("_token") and token}
            text = sandbox.from_string(text).render(messages=broken, add_generation_prompt=True, **names)
        except Exception as error:  # a template is a stranger's program: it may fail in any way
            raise ValueError(f"{folder}: its chat template cannot be rendered ({error!r})") from None
        return [token for i, piece in enumerate(re.split(f"({special})", text)) for token in (
            [encoding.encode_single_token(piece)] if i % 2 else encoding.encode_ordinary(piece.replace(mark, "")))]

    encode.source = "guessed from the special tokens" if source is guess else "the folder's template"
    return encode


def copy_tokenizer(source: str | Path, folder: str | Path) -> None:
    """Copies the tokenizer's files byte for byte, so that a saved model folder is complete."""
    for path in Path(source).iterdir():
        if path.suffix in (".tiktoken", ".jinja") or path.name in (
                "spec.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copyfile(path, Path(folder, path.name + ".tmp"))
            os.replace(Path(folder, path.name + ".tmp"), Path(folder, path.name))
