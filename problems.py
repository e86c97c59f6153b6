"""Files of problems, prompts, chats and texts → token ids and labels: reading, protocols, examples."""

import csv
import hashlib
import io
import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

from grader import KINDS, last_box
from tokens import (Chat, Encoding, begin_token, decode, encode_continuation, end_tokens, load_chat,  # noqa: F401
                    naming)  # some of them for those outside

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
