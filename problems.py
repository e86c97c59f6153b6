"""Files of problems, prompts, chats and texts → token ids and labels: reading, protocols, chat templates."""

import csv
import hashlib
import inspect
import io
import itertools
import json
import os
import random
import re
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

from grader import KINDS, last_box
from hf import JSONTokenizer, RankTokenizer, naming, read_json
from lora_alpha import GPTConfig

Encoding = RankTokenizer | JSONTokenizer

# ---- Problems --------------------------------------------------------------------------------------------------------

GPQA = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]


def data_file(path: str | Path, name: str) -> Path:
    """NAME.jsonl, NAME.json or NAME.csv of a data folder; a file is itself."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / f"{name}{end}" for end in (".jsonl", ".json", ".csv") if (path / f"{name}{end}").exists()]
    if len(found) > 1:
        raise ValueError(f"{path}: holds {' and '.join(f.name for f in found)}; give the one that you mean as the path")
    return found[0] if found else path / f"{name}.jsonl"


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """(where, fields) of each row of a CSV file, a JSONL file or a JSON array; blank lines are passed over."""
    if not path.is_file():
        maker = path.parent / "prepare.py"
        raise ValueError(f"{path}: there is no such file" + (f"; python {maker} makes it" if maker.exists() else ""))
    with naming(f"{path}: not UTF-8"):
        text = path.read_bytes().decode("utf-8-sig")

    def parse(where, text):
        with naming(f"{where}: not JSON", (ValueError, RecursionError)):
            return where, json.loads(text)

    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # a quote that is not closed is an error
        try:
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
            if twice := [name for name, count in Counter(reader.fieldnames).items() if count > 1]:
                raise ValueError(f"{path}: the column {twice[0]!r} stands twice")
            if wide := [where for where, row in rows if None in row]:
                raise ValueError(f"{wide[0]}: more cells than columns; quote a cell that holds a comma")
        except csv.Error as error:  # DictReader counts a line when it has read it, its inner reader before
            raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from None
    elif text.lstrip().startswith("["):
        rows = [(f"{path}, entry {n}", row) for n, row in enumerate(parse(path, text)[1], 1)]
    else:  # not splitlines(): U+2028 inside a string ends no line
        rows = [parse(f"{path}, line {n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not a JSON object")
    if not rows:
        raise ValueError(f"{path}: holds no problem")
    return rows


def load_problems(path: str | Path) -> list[dict]:
    """The rows of a JSONL or CSV file or a JSON array, all of one form, which their fields tell: see data/README.md.

    Each has id (its row, from 0), where (file and line), form (problem, prompt, messages or text), problem (a text to
    show), solution, working (the solution without its final answer), answer (None where no gold answer is known), kind,
    level and subject; a choice its question and its options, shuffled; a chat its messages, first (the first that may
    be learnt) and asked (how many stand before the last answer). ValueError names file and line.
    """
    problems, rows = [], read_rows(Path(path))
    for number, (where, row) in enumerate(rows):
        with naming(where, (ValueError, RecursionError)):
            row = {name: value for name, value in row.items() if value is not None}
            problem = dict({"form": "problem", "kind": "math", "answer": None}, **read_row(row))
            for name in ("problem", "solution", "answer"):
                if not isinstance(problem[name], str) and (name, problem[name]) != ("answer", None):
                    name = next((field for field, value in row.items() if value is problem[name]), name)
                    raise ValueError(f"no text for {name!r}; want {FIELDS}")
            if problems and problem["form"] != problems[0]["form"]:
                raise ValueError(f"fields of the form {problem['form']!r}, but {problems[0]['form']!r} in "
                                 f"{rows[0][0].rpartition(', ')[2]}: a file has one form")
            subjects = (row.get(name) for name in ("High-level domain", "Subdomain", "type", "subject"))
            problem |= dict(id=number, where=where, answer=problem["answer"] or None,
                            level=level_name(row.get("level")), subject=str(next(filter(None, subjects), "all")))
        problems.append(dict({"working": problem["solution"]}, **problem))
    return problems


FIELDS = ("problem and solution or answer (MATH), question and answer (GSM8K), GPQA's columns, prompt and completion, "
          "messages, or text")
RENAMED = dict(conversations="messages", conversation="messages", instruction="prompt", question="prompt",
               query="prompt", input="prompt", output="completion", response="completion", target="completion",
               chosen="completion", content="text")  # the fields of other well-known shapes, and their names here


def read_row(row: dict) -> dict:
    """What the fields of a row tell of a problem; load_problems adds the rest."""
    answer = row.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if "Question" in row:
        return read_choice(row)
    if "problem" in row or {"question", "solution"} <= row.keys():
        solution = row.get("solution", "" if answer else None)
        answer = last_box(solution) if not answer and isinstance(solution, str) else answer
        return dict(problem=row.get("problem", row.get("question")), solution=solution, answer=answer)
    if "prompt" in row and (answer is not None or "completion" in row):
        if isinstance(row["prompt"], list):
            return read_messages(row["prompt"], row.get("completion", []), answer)
        if row["prompt"] == "":
            raise ValueError('the prompt is empty; what has none is {"text": ...}')
        return dict(form="prompt", problem=row["prompt"], solution=row.get("completion", ""), answer=answer)
    if "messages" in row:
        return read_messages([], row["messages"], answer)
    if "question" in row and isinstance(answer, str):
        working, marks, gold = (part.strip() for part in answer.rpartition("####"))
        if marks:
            working = re.sub(r"<<[^<>]*>>", "", working)  # its calculator's notes
            return dict(kind="gsm8k", problem=row["question"], solution=answer, working=working, answer=gold)
        gold = gold if re.fullmatch(r"[-+]?\$?\d[\d,]*(\.\d+)?%?", gold) else None  # a sentence is no gold answer
        return dict(kind="gsm8k", problem=row["question"], solution=answer, answer=gold)
    if "text" in row:
        start = row["text"] if not isinstance(row["text"], str) else re.match(r"(\s*\S+){,8}", row["text"][:100])[0]
        return dict(form="text", problem=start, solution=row["text"])  # no answer: nothing is asked
    names = {new: old for old, new in reversed(RENAMED.items()) if old in row and new not in row}
    cure = " and ".join(f"{old!r} to {new!r}" for new, old in sorted(names.items(), reverse=True))  # prompt first
    cure = f"rename {cure}" if names else f"want {FIELDS}"
    if "messages" in names:
        cure += ", in it 'from' to 'role' (user, assistant) and 'value' to 'content'"
    raise ValueError(f"fields {', '.join(map(str, row))[:200]}: {cure}")


def read_messages(prompt: list, learnt: list, answer: str | None) -> dict:
    """A chat of messages that are only context, prompt, and messages whose assistant turns are learnt."""
    if not isinstance(learnt, list) or not prompt + learnt:
        raise ValueError(f"{'completion' if prompt else 'messages'} must be a list of one message or more")
    turns = prompt + learnt
    for number, turn in enumerate(turns, 1):
        if not (isinstance(turn, dict) and turn.get("role") in ("system", "user", "assistant")
                and isinstance(turn.get("content"), str) and turn.get("weight", 1) == 1):
            raise ValueError(f"message {number}, {json.dumps(turn)[:80]}: want a role (system, user or "
                             "assistant), a content (a text) and no weight")
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i >= len(prompt)]
    if not replies and answer is None or prompt and prompt[-1]["role"] == "assistant":
        raise ValueError("no message of the assistant's to learn, or one at the end of the prompt")
    asked = len(turns) if turns[-1]["role"] == "user" else replies[-1]
    problem = next((turn["content"] for turn in reversed(turns[:asked]) if turn["role"] == "user"), "")
    return dict(form="messages", problem=problem, solution=turns[replies[-1]]["content"] if replies else "",
                answer=answer, messages=turns, first=len(prompt), asked=asked)


def level_name(level) -> str:
    """MATH's "Level 5", which MATH-500 calls 5; "all" where there is none."""
    return "all" if level in (None, "") else f"Level {level}" if str(level).isdigit() else str(level)


def read_choice(row: dict) -> dict:
    """A row of GPQA's CSV. The order of its options is drawn from a hash of its question, so it is everyone's."""
    missing = [name for name in GPQA if not isinstance(row.get(name), str) or not row[name].strip()]
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing or empty; want {', '.join(GPQA)}")
    question, *texts = (row[name].strip() for name in GPQA)
    draw = int(hashlib.sha256(question.encode()).hexdigest(), 16) % 24
    order = list(itertools.permutations(range(4)))[draw]  # order[i]: which text is option i; text 0 is the right one
    options, letter = [texts[i] for i in order], "ABCD"[order.index(0)]
    working = str(row.get("Explanation") or "").strip()
    return dict(kind="choice", problem=ask_choice(question, options, "({}) {}"), question=question, options=options,
                working=working, solution=f"{working} The answer is ({letter}).".strip(), answer=letter)


def load_tests(data: str | Path, kind: str | None = None) -> list[dict]:
    """The test problems of a file or a data folder, each with a gold answer, all of one kind (kind, where given)."""
    problems = load_problems(data_file(data, "test"))
    for problem in problems:
        if problem["form"] == "text":
            raise ValueError(f"{data}: a text asks nothing: pass@1 needs problems, prompts or messages, with answers")
        if kind == "choice" and "options" not in problem:
            raise ValueError(f"--kind choice: {data} has no options; want GPQA's columns, {', '.join(GPQA)}")
        problem["kind"] = kind or problem["kind"]
        if not problem["answer"]:
            raise ValueError(f"{data}: row {problem['id']} (from 0) has no answer to grade against")
    if len({problem["kind"] for problem in problems}) > 1:
        raise ValueError(f"{data}: holds several kinds of problem; give --kind, or a file for each")
    return problems


def ask_choice(question: str, options: list[str], style: str) -> str:
    return "\n".join([question, *(style.format(letter, option) for letter, option in zip("ABCD", options))])


# ---- Prompts ---------------------------------------------------------------------------------------------------------

PROMPT = "Problem: {problem}\nSolution:"

# The published protocols, in our own layout: kind → (worked examples, most new tokens, question, worked answer).
# {working} is a solution without its final answer. Wording moves such a number by points: for a figure that is to stand
# beside a published one, take the words from the source and give them as --prompt "... {problem} ...".
PROTOCOLS = {
    "plain": dict(
        source="this repository: what train.py teaches", chat=False, option="({}) {}",
        math=(0, 256, PROMPT, " {solution}")),
    "own": dict(source="the data: a prompt as it is, a chat up to its last answer", chat=False, option="({}) {}",
                math=(0, 256, "{problem}", "{solution}")),
    "chat": dict(source="the question alone, as a user's turn", chat=True, option="({}) {}",
                 math=(0, 256, "{problem}", "{solution}")),
    "minerva": dict(
        source="Lewkowycz et al. 2022 (arXiv:2206.14858), appendix; 512 tokens as in Llama 3's evaluation details. Its "
               "four examples are MATH training problems and are not here: yours are the first of --few-shot-from",
        chat=False, option="({}) {}",
        math=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is ${answer}$."),
        gsm8k=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is {answer}."),
        choice=(4, 512, "Problem:\n{problem}\n\nSolution:", "\n{working}\nThe final answer is ({answer}).")),
    "tulu3": dict(
        source="Lambert et al. 2024 (arXiv:2411.15124), evaluation appendix, and github.com/allenai/olmes", chat=True,
        option="({}) {}",
        math=(4, 1024, "Problem:\n{problem}\n\nSolution:", "{working}\nThe final answer is ${answer}$."),
        gsm8k=(8, 512, "Question: {problem}\nAnswer:", "{working} So the answer is {answer}."),
        choice=(0, 2048, "Choose the one right option of this question. Reason step by step first, and close with the "
                "line \"Therefore, the answer is (X)\", X being its letter.\n\nQuestion: {problem}\nAnswer:",
                "{working}\nTherefore, the answer is ({answer}).")),
    "llama3": dict(
        source="github.com/meta-llama/llama-models, models/llama3_1/eval_details.md, and the prompts in the evals data "
               "sets at huggingface.co/meta-llama", chat=True, option="{}. {}",
        math=(0, 5120, "Solve this problem. Where one or two steps do, answer in a few words; otherwise write each "
              "step under a heading such as\n\n## Step 1: What it does\n\nClose with the sentence\n\nTherefore, the "
              "final answer is: $\\boxed{X}$\n\nwhere X is the number or expression alone.\n\nProblem: {problem}",
              "{working}\n\nTherefore, the final answer is: $\\boxed{{answer}}$"),
        gsm8k=(8, 1024, "Reason about this problem, and close with \"The final answer is X\", X being a number.\n\n"
               "Problem: {problem}", "{working} The final answer is {answer}"),
        choice=(0, 2048, "Choose the best of the four candidate answers A, B, C and D to this question. Where it is "
                "simple, answer in a few words; otherwise write each step under a heading such as\n\n## Step 1: What "
                "it does\n\nClose with the sentence\n\nThe best answer is X.\n\nwhere X is one of the letters.\n\n"
                "Question: {problem}\n\nThink step by step.", "{working}\nThe best answer is {answer}.")),
    "simple-evals": dict(
        source="github.com/openai/simple-evals, math_eval.py and common.py (sampled at temperature 0.5, 2,048 tokens)",
        chat=True, option="{}) {}",
        math=(0, 2048, "Solve this math problem step by step. Let the last line of your response be Answer: $ANSWER, "
              "where $ANSWER is your answer, and use no box.\n\n{problem}", "{working}\n\nAnswer: {answer}"),
        choice=(0, 2048, "Answer this multiple choice question. Think step by step, and let the last line of your "
                "response be Answer: $LETTER, where LETTER is one of ABCD.\n\n{problem}",
                "{working}\n\nAnswer: {answer}")),
}


def fill(template: str, **fields: str) -> str:
    """The template with its {names} replaced, all at once: braces in what is filled in, or in LaTeX, are only text."""
    return re.sub("|".join(rf"\{{{name}\}}" for name in fields), lambda match: fields[match[0][1:-1]], template)


# LaTeX's commands that begin with n: there \n is no line feed.
NOT_LINE_FEEDS = set(
    "nabla natural ncong ne nearrow neg neq newcommand newline newpage nexists ngeq ngeqq ngeqslant ngtr ni nicefrac "
    "nleftarrow nLeftarrow nleftrightarrow nLeftrightarrow nleq nleqq nleqslant nless nmid nobreak noindent nolimits "
    "nonumber normalfont normalsize not notag notin nparallel nprec npreceq nrightarrow nRightarrow nshortmid "
    "nshortparallel nsim nsubseteq nsubseteqq nsucc nsucceq nsupseteq nsupseteqq ntriangleleft ntrianglelefteq "
    "ntriangleright ntrianglerighteq nu num nvdash nvDash nVdash nVDash nwarrow".split())


def line_feeds(text: str) -> str:
    """\\n as a line feed, which a shell has no easy way to write; \\nabla stays, and so does \\n after a backslash."""
    return re.sub(r"(?<!\\)\\n([a-zA-Z]*)", lambda match: match[0] if "n" + match[1] in NOT_LINE_FEEDS else
                  "\n" + match[1], text)


class Protocol:
    """How a problem is put to the model: the wording of one kind of problem, and worked examples before it."""

    def __init__(self, name: str | None, kind: str, form: str = "problem", system: str | None = None):
        """name: one of PROTOCOLS, a format string with {problem}, or None: as training asks; ValueError for others.
        system: the message before a chat."""
        name = name or ("plain" if form == "problem" else "own")
        if name not in PROTOCOLS and "{problem}" not in name:
            raise ValueError(f"--prompt {name!r}: want one of {', '.join(PROTOCOLS)}, or a text with {{problem}} in "
                             "it; --help-prompts prints them all")
        self.name, entry = name, PROTOCOLS.get(name)
        if entry and name not in ("plain", "own", "chat"):
            self.name += " in our wording"
        if not entry:
            question = line_feeds(name)
            self.name = repr(question)
            entry = dict(chat=False, option="({}) {}",
                         math=(0, 256, question, "{solution}" if question[-1].isspace() else " {solution}"))
        self.chat, self.option = entry["chat"] or (name, form) == ("own", "messages"), entry["option"]
        self.shots, self.max_new_tokens, self.question, self.answer = entry.get(kind, entry["math"])
        first = self.question.partition("{problem}")[0].strip().partition("\n")[0]
        self.cut = f"\n{first}" if ":" in first else ""  # how an invented next problem would begin: "Problem:", "Q:"
        self.examples, self.system = [], system

    def take_examples(self, tests: list[dict], data: str | Path, count: int | None = None, source=None) -> None:
        """Takes count worked examples (None: the protocol's number): the first that are not among the tests.

        They come from the file `source`, else from the training problems of the folder `data`.
        """
        count = self.shots if count is None else count
        if not count and source:
            raise ValueError(f"--few-shot-from {source}: this protocol has no examples; add --few-shot K")
        if not count:
            return
        if self.name == "own" and self.chat:
            raise ValueError("--few-shot: a chat is asked as it is; --prompt chat asks its last question alone")
        path = Path(source) if source else data_file(data, "train")
        if not source and (not Path(data).is_dir() or not path.exists()):
            raise ValueError(f"{count} worked examples are wanted: add --few-shot-from FILE (or --few-shot 0)")
        tested = {" ".join(problem["problem"].split()) for problem in tests}
        pool = [p for p in load_problems(path) if p["answer"] and p["solution"]
                and " ".join(p["problem"].split()) not in tested]
        if any(("options" in p) != ("options" in tests[0]) for p in pool):
            raise ValueError(f"{path}: worked examples of another kind than the problems of {data}")
        if len(pool) < count:
            raise ValueError(f"{path}: {len(pool)} worked examples that are not under test, {count} are wanted")
        self.examples = pool[:count]

    def ask(self, problem: dict) -> str:
        text = problem["problem"]
        if "options" in problem:
            text = ask_choice(problem["question"], problem["options"], self.option)
        return fill(self.question, problem=text)

    def turns(self, problem: dict) -> list[str]:
        """Question and answer of each worked example, then the question."""
        texts = []
        for shot in self.examples:
            answer = fill(self.answer, solution=shot["solution"], working=shot["working"], answer=shot["answer"] or "")
            texts += [self.ask(shot), answer]
        return [*texts, self.ask(problem)]

    def encode(self, encoding: Encoding, problem: dict, bos: int | None, chat=None) -> list[int]:
        """The prompt's tokens: chat turns through the folder's template, chat, where there is one; else plain text."""
        if self.name == "own" and not self.examples:
            return encode_prompt(encoding, problem, bos, chat)
        turns, gap = self.turns(problem), " " if self.chat else ""  # between a question and its answer
        with naming(problem.get("where", "the question")):
            if self.chat and chat:
                roles = itertools.cycle(("user", "assistant"))
                system = [dict(role="system", content=self.system)] if self.system else []
                return chat(system + [dict(role=role, content=text) for role, text in zip(roles, turns)])
            text = "".join(turn + gap if i % 2 == 0 else turn + "\n\n" for i, turn in enumerate(turns[:-1])) + turns[-1]
            return [bos] * (bos is not None) + encoding.encode_ordinary(text)


def help_prompts() -> str:
    """Every named protocol in full."""
    texts = []
    for name, entry in PROTOCOLS.items():
        texts.append(f"==== {name}: {'chat turns' if entry['chat'] else 'plain text'}. Source: {entry['source']}")
        for kind in (kind for kind in KINDS if kind in entry):
            shots, tokens, question, answer = entry[kind]
            texts.append(f"---- {name}, {kind}: {shots} worked examples, at most {tokens:,} new tokens\n{question}\n"
                         f"-- a worked answer, in an example\n{answer.strip()}")
    texts.append("A kind that a protocol lacks is asked as its math is. A choice's options follow its question: " +
                 ", ".join(f"{name} {entry['option'].format('A', 'text')!r}" for name, entry in PROTOCOLS.items()))
    return "\n\n".join(texts)


def end_tokens(encoding: Encoding, config: GPTConfig, chat: bool = False) -> tuple[int, ...]:
    """The tokens that end an answer: the model's, else the tokenizer's <|endoftext|>; training teaches the first.

    In a chat the tokens that end a turn do, too. Raises ValueError where there is none, or where model and tokenizer do
    not belong together.
    """
    ends = config.eos_token_id
    if not ends and "<|endoftext|>" in encoding.special_tokens_set:
        ends = (encoding.eot_token,)
    if chat:
        turn_ends = {"<|im_end|>", "<|eot_id|>"} & encoding.special_tokens_set
        ends = (*(ends or ()), *(encoding.encode_single_token(token) for token in sorted(turn_ends)))
    if not ends:
        raise ValueError("no token ends an answer: set eos_token_id in config.json, or <|endoftext|> in spec.json")
    if max(encoding.max_token_value, *ends) >= config.vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(encoding.max_token_value, *ends)}, the model only "
                         f"{config.vocab_size} of them: they do not belong together")
    return ends


def begin_token(encoding: Encoding, config: GPTConfig) -> int | None:
    """The token that begins every text: as the tokenizer's file says, where it does; else the model's bos_token_id."""
    return getattr(encoding, "bos", config.bos_token_id)


# The turns of a folder that has a rank file alone, told by a special token: Llama 3's and ChatML's.
TURNS = {
    "<|start_header_id|>": "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
                           "'<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_gener"
                           "ation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "<|im_start|>": "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
                    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
}


PATIENCE = 5  # seconds for one rendering


def renderer(seconds: float) -> None:
    """What the process that renders a template runs: a template on the first line, then what it is shown, as JSON.

    A template is a stranger's program. It runs in a sandbox, with what transformers shows to one, in a process of its
    own that may take a gigabyte (where the system has such limits) and that the parent can stop.
    """
    import sys
    sys.path[:] = sys.argv[1:]  # the parent's
    import faulthandler
    import functools
    import json
    import re
    import signal
    from contextlib import suppress
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str):
        raise TemplateError(message)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's
    with suppress(ImportError, ValueError, OSError):
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    # A {% generation %} block comes out between two marks: str.join as a filter puts them there.
    template = re.sub(r"({%[-+]?\s*)(end)?generation\b", lambda tag: tag[1] + (
        "endfilter" if tag[2] else "filter generation(generation_marks)"), json.loads(sys.stdin.readline()))
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])
    sandbox.filters |= dict(tojson=functools.partial(json.dumps, ensure_ascii=False), generation=str.join)
    sandbox.globals |= dict(raise_exception=raise_exception, strftime_now=datetime(2024, 7, 26).strftime)
    compiled = functools.cache(sandbox.from_string)
    for line in sys.stdin:
        faulthandler.dump_traceback_later(seconds, exit=True)  # ends this process from a thread beside Python's
        try:
            text = compiled(template).render(json.loads(line))
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is no text
            reply = [text, None] if len(text) < 2**22 else [None, f"{len(text):,} characters"]
        except MemoryError:
            return
        except Exception as error:  # it may fail in any way
            reply = [None, repr(error)[:300]]
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(reply), flush=True)


class Chat:
    """Messages (role, content) → tokens by a folder's template.

    strftime_now tells 26 July 2024, as Llama 3.2's template does without it: a prompt is the same tomorrow. Special
    tokens in a message are only text. source: where the template is from. ValueError where it cannot be rendered.
    """

    def __init__(self, folder: Path, encoding: Encoding, template: str, source: str, names: dict[str, str]):
        self.folder, self.encoding, self.template, self.source, self.names = folder, encoding, template, source, names
        self.tokens = sorted(encoding.special_tokens_set, key=len, reverse=True)
        self.special = "|".join(map(re.escape, self.tokens)) or "(?!)"
        self.heads, self.process = sorted({token[0] for token in self.tokens}), None

    def mark(self, messages: list[dict]) -> list[dict]:
        """The messages with stand-ins for what begins their special tokens. marks: these and 3 more unused letters."""
        said = json.dumps(messages, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        unused = (chr(i) for i in range(0xE000, 0xF900) if chr(i) not in said)
        self.marks = "".join(itertools.islice(unused, len(self.heads) + 3))
        hide = dict(zip(map(ord, self.heads), self.marks))
        messages = json.loads(re.sub(self.special, lambda token: token[0].translate(hide), said))
        return [{key: value for key, value in message.items() if value is not None} for message in messages]

    def render(self, messages: list[dict], prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The text, and begin and end of each {% generation %} block in it."""
        text, error = self.ask(self.names | dict(messages=messages, tools=None, documents=None,
                                                 add_generation_prompt=prompt, generation_marks=self.marks[-2:]))
        if error:
            raise ValueError(f"{self.folder}: its chat template cannot be rendered ({error})")
        pieces = re.split(f"[{self.marks[-2:]}]", text)
        cuts = list(itertools.accumulate(map(len, pieces)))
        return "".join(pieces), list(zip(cuts[::2], cuts[1::2]))

    def ask(self, shown: dict) -> list:
        """[text, None] or [None, error] of the process that renders."""
        if self.process is None or self.process.poll() is not None:
            program = inspect.getsource(renderer) + f"renderer({PATIENCE})"
            self.process = subprocess.Popen([sys.executable, "-c", program, *sys.path], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            weakref.finalize(self, self.process.communicate)
            self.process.stdin.write(json.dumps(self.template) + "\n")
        try:
            self.process.stdin.write(json.dumps(shown) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # it is gone
            self.process.kill()
            self.process.wait()
            return [None, f"it takes more than {PATIENCE} s or 1 GB"]

    def encode(self, text: str) -> list[tuple[int, int, int]]:
        """token_spans of a rendered text: the template's special tokens are tokens, the messages' are text."""
        show = dict(zip(map(ord, self.marks), self.heads))
        if text == text.translate(show):
            return token_spans(self.encoding, text, special=True)
        first, later = (token_spans(self.encoding, token + "a", special=True) for token in ("", self.tokens[0]))
        lead = "" if first[0][0] == later[1][0] else "\n"  # SentencePiece may put a blank before the first piece alone
        skip, tokens, at = len(token_spans(self.encoding, lead)), [], 0
        for i, piece in enumerate(re.split(f"({self.special})", text)):
            plain = token_spans(self.encoding, lead * (i > 0) + piece.translate(show))[skip * (i > 0) :]
            shift = at - len(lead) * (i > 0)
            tokens += [(self.encoding.encode_single_token(piece), at, at + len(piece))] if i % 2 else [
                (token, begin + shift, end + shift) for token, begin, end in plain]
            at += len(piece)
        return tokens

    def __call__(self, messages: list[dict]) -> list[int]:
        """Tokens up to where the assistant speaks."""
        return [token for token, _, _ in self.encode(self.render(self.mark(messages), prompt=True)[0])]

    def turn(self, messages: list[dict]) -> tuple[str, int]:
        """The text of messages, and where the last, the assistant's, begins in it: after its prompt; where the prompt
        is empty or shown otherwise, with its content."""
        *before, last = messages
        text, prompt = self.render(messages)[0], self.render(before, prompt=True)[0] if before else self.marks[-3]
        if not text.startswith(prompt):
            prompt = os.path.commonprefix([text, self.render([*before, last | {"content": self.marks[-3]}])[0]])
        return text, len(prompt)

    def examples(self, messages: list[dict], start: int = 0) -> list[tuple[list[int], list[int]]]:
        """(ids, labels), labels[t] = ids[t] where it is learnt, else -100: the assistant's turns from messages[start].

        Learnt are {% generation %} blocks; in a template without them what a turn puts after its prompt, as TRL learns
        a completion: with the token that ends it, and ChatML's line feed. Where turns are shown otherwise once others
        follow, each is an example. Empty where nothing is learnt.
        """
        messages = self.mark(messages)
        text, spans = self.render(messages)
        parts = [(text, spans[len(self.render(messages[:start])[1]) if start else 0 :])]
        if not spans:
            turns = [self.turn(messages[: i + 1]) for i in range(start, len(messages))
                     if messages[i]["role"] == "assistant"]
            parts = [(shown, [(begin, len(shown))]) for shown, begin in turns]
            if all(text.startswith(shown) for shown, _ in turns):
                parts = [(text, [span for _, (span,) in parts])]
        examples = []
        for text, spans in parts:
            tokens = self.encode(text)
            labels = [token if any(begin < last and end > first for first, last in spans) else -100
                      for token, begin, end in tokens]
            examples += [([token for token, _, _ in tokens], labels)] * any(label != -100 for label in labels)
        return examples


def token_spans(encoding: Encoding, text: str, special: bool = False) -> list[tuple[int, int, int]]:
    """(id, begin, end) of each token, begin and end in characters; special: special tokens are tokens, else text."""
    if isinstance(encoding, JSONTokenizer):
        found = encoding.encode(text, special)
        return [(token, *span) for token, span in zip(found.ids, found.offsets)]
    ids = encoding.encode(text, allowed_special="all" if special else set(), disallowed_special=())
    owners = [i for i, letter in enumerate(text) for _ in letter.encode()]  # the character of each byte
    ends = list(itertools.accumulate(len(encoding.decode_single_token_bytes(token)) for token in ids))
    return [(token, owners[begin], owners[end - 1] + 1) for token, begin, end in zip(ids, [0, *ends], ends)]


def load_chat(folder: str | Path, encoding: Encoding) -> Chat | None:
    """The chat of a model folder: by its template file, tokenizer_config.json or special tokens; None without."""
    paths = [Path(folder, name) for name in ("additional_chat_templates/default.jinja", "chat_template.jinja")]
    config, named = (read_json(path) if path.is_file() else None for path in (
        Path(folder, "tokenizer_config.json"), Path(folder, "special_tokens_map.json")))
    guess = next((turns for token, turns in TURNS.items() if token in encoding.special_tokens_set), None)
    template = guess if config is None else config.get("chat_template")
    template = next((path.read_text("utf-8", "replace") for path in paths if path.is_file()), template)
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if isinstance(entry, dict)
                         and entry.get("name") == "default"), None)
    if not template:
        return None
    if not isinstance(template, str):
        raise ValueError(f"{folder}: its chat_template is no text, nor a list with a text named default")
    names = (config or {}) | ({} if config and "added_tokens_decoder" in config else named or {})
    names = {name: token.get("content") if isinstance(token, dict) else token for name, token in names.items()
             if name.endswith("_token") and isinstance(token, str | dict)}
    words = "guessed from the special tokens" if template is guess else "the folder's template"
    return Chat(folder, encoding, template, words, names)


def chat_for(problems: list[dict], folder: str | Path, encoding: Encoding, needed: bool = False) -> Chat | None:
    """load_chat where one of the problems is a chat, else None. ValueError where the folder has no template."""
    needed = needed or any(problem["form"] == "messages" for problem in problems)
    chat = load_chat(folder, encoding) if needed else None
    if needed and chat is None:
        raise ValueError(f"{folder}: messages need a chat template, and neither chat_template.jinja nor "
                         "tokenizer_config.json has one: take an instruct model, or write prompt and completion")
    return chat


def draw(problems: list[dict], count: int | None, seed: int = 0) -> list[dict]:
    """A random count of the problems, in their order: files are often sorted by subject. All, where it is None."""
    if count is None or count >= len(problems):
        return problems
    return [problems[i] for i in sorted(random.Random(seed).sample(range(len(problems)), count))]


def asking(problems: list[dict]) -> dict:
    """How these problems put their question: the prompt, and the system message that all their chats share."""
    systems = {turns[0]["content"] if turns[0]["role"] == "system" else None
               for turns in (problem.get("messages", [dict(role=None)]) for problem in problems)}
    return dict(prompt={"problem": PROMPT, "messages": "chat"}.get(problems[0]["form"], "{problem}"),
                system=systems.pop() if len(systems) == 1 else None)


def encode_prompt(encoding: Encoding, problem: dict, bos: int | None = None, chat=None) -> list[int]:
    """The tokens of what is asked, the same in training and evaluation. Special tokens in a problem are just text."""
    form = problem.get("form", "problem")
    with naming(problem.get("where", "the question")):
        if form == "messages":
            return chat(problem["messages"][: problem["asked"]])
        text = PROMPT.format(problem=problem["problem"]) if form == "problem" else problem["problem"]
        return [bos] * (bos is not None) + encoding.encode_ordinary(text)


def encode_example(encoding: Encoding, problem: dict, end: int, bos: int | None = None) -> tuple[list, list]:
    """(ids, labels) of a problem, prompt or text: the solution is learnt (of a text all), and the end token after it.

    Prompt and solution are encoded apart: no token spans the border, and the prompt is the one that evaluation asks.
    (TRL's SFTTrainer encodes them as one text, cuts it after as many tokens as the prompt has, and warns where that is
    not the prompt.)
    """
    if problem.get("form") == "text":
        prompt, answer = [bos] * (bos is not None), encoding.encode_ordinary(problem["solution"])
    else:
        blank = "" if problem.get("form") == "prompt" else " "
        prompt = encode_prompt(encoding, problem, bos)
        answer = encode_continuation(encoding, blank + problem["solution"])
    return [*prompt, *answer, end], [-100] * len(prompt) + [*answer, end]


def encode_examples(encoding: Encoding, problem: dict, end: int, bos: int | None = None, chat=None) -> list[tuple]:
    """The examples of a problem: none without a solution, several where a chat is learnt turn by turn."""
    with naming(problem.get("where", "the example")):
        if problem["form"] == "messages":
            return chat.examples(problem["messages"], problem["first"])
        return [encode_example(encoding, problem, end, bos)] if problem["solution"].strip() else []


def encode_continuation(encoding: Encoding, text: str) -> list[int]:
    """Tokens of a text that follows another, before which SentencePiece would put a blank."""
    if not getattr(encoding, "adds_blank", False):
        return encoding.encode_ordinary(text)
    before = "a" if text[:1].isspace() else "\n"  # which no token joins to the text
    first, both = encoding.encode_ordinary(before), encoding.encode_ordinary(before + text)
    return both[len(first) :] if both[: len(first)] == first else encoding.encode_ordinary(text)


def decode(encoding: Encoding, tokens: list[int]) -> str:
    """Text of the tokens. Models have more ids than their tokenizer has tokens: such an id decodes to nothing."""
    pieces = []
    for token in tokens:
        try:
            pieces.append(encoding.decode_single_token_bytes(token))
        except KeyError:
            continue
    return b"".join(pieces).decode("utf-8", errors="replace")
