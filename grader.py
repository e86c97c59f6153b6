r"""Whether the answer that a response states equals the gold one: exact, in pure Python, and this file is all of it.

    is_correct(r"so \boxed{\frac12}", "0.5")          True; kind="gsm8k" is for GSM8K's numbers, "choice" for letters
    python grader.py "so \boxed{\frac12}" 0.5         the same, and how both were read

Equal are the ways to write one thing: 1/2, 0.5, 2/4; 0.333... and 1/3; 2\frac34 and 2.75; 1,234 and 1234; √8 and 2√2;
(x+1)² and x²+2x+1; 3 ± 1 and 4, 2; lists and sets in any order, tuples, intervals and matrices in theirs; x = 5 and
5; x > 3 and (3, ∞); an equation and its multiples; log₄ 8 and 3/2; arcsin 1 and π/2; gcd(4, 6) and 2; 5 cm and 5 (not
5 m); 10% and 10 (not 0.1) and 30° and 30 (not beside a function), as MATH's answers have it. What may be read in two
ways is read so that less is equal: letters alone are a name (AB is not BA, A·B is B·A), AB_{12} too; 3-2 is a score,
5 dozen 60, sin⁻¹ an inverse, ∞ - ∞ nothing. Outside of this grammar the same string without its blanks is equal,
nothing else. No tolerance, no float, no running of text: what can't be decided (a root of a sum) is wrong.

Read it top to bottom. What each stage makes of "so \boxed{(\frac12, 2x)}":

    extract   extract_answer           response → the answer's text     (\frac12, 2x)
    tokens    tokens_of                text → tokens                    ( \frac 12 , 2 x )
    values    Residue, Field           numbers and functions            Fraction(1, 2), and a Residue for 2x
    parts     Reader.read, sum         tokens → an Answer               ("tuple", "()", [½, 2x])
    same      Reader.same, decided     two Answers → yes or no          equal part by part, in two fields
    verdict   is_correct, equal        response and gold → yes or no    or else equal as strings

Rationals are compared as rationals, all else by its value at a random point of two prime fields of over 283 bits: an
accident is out of the question (test_grader.py::test_the_fields_are_what_the_grader_needs).
Of 800 and 165 labelled MATH outputs 800 and 163 are decided as labelled, by Math-Verify 0.9.0 792 and 160; of 6,595 on
GSM8K 6,592, 6,590; of 84 test cases of other graders 63, 61; a row of MATH takes 0.05 and 0.47 ms of CPU time here,
1.63 and 17.37 ms there (python experiments/graders.py; row by row in tests/grading_notes.md).
"""

import argparse
import hashlib
import math
import re
import sys
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from itertools import accumulate
from numbers import Rational

KINDS = ("math", "gsm8k", "choice")  # of problem, and how its answer is graded
LONGEST = 10_000  # characters of an answer that are read as mathematics; a longer one is compared as a string

# ---- Extract: a response → the text of its answer --------------------------------------------------------------------

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s{0,9}")
ANSWER_IS = re.compile(r"answer(?:\s{1,9}is\b|[*_]{0,2}\s{0,9}:)", re.IGNORECASE)
NUMBER = re.compile(r"""
    (?: (?<![\w)])[-−–—‐‑‒―－﹣] | (?<==\s)[-−–—]\s )?  # a minus, but after a digit or a letter it is a subtraction
    (?: \\?\$ )?
    (?: [0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?![0-9]) | [0-9]+ )  # 1,234: thousands, for three digits follow
    (?: \.[0-9]+ | /[0-9]+ )? | \.[0-9]+""", re.VERBOSE)


def last_box(text: str) -> str | None:
    """The contents of the last \\boxed or \\fbox, its braces balanced; None where there is none, or it is cut off."""
    end = max((box.end() for box in BOX.finditer(text)), default=None)
    if end is None:
        return None
    rest = text[end : end + 10 * LONGEST]
    if not rest.startswith("{"):  # \boxed 5: what stands before the closing $
        return re.match(r"[^$\n]*", rest)[0].strip()
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # an escaped brace is no brace
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return rest[1 : brace.start()].strip()
    return None


def stated(text: str) -> str:
    """The answer that follows "the answer is": a displayed formula, or what stands before the end of the sentence."""
    text = text[:LONGEST].replace("...", "…").lstrip(" \t\r\n:*_`")
    sentence = re.split(r"[.](?=\s|[$*]*$|[$*]+\s)|\n|,? (?:because|since|which|where|as)(?:\s|$)", text, maxsplit=1)[0]
    formula = (re.match(r"\$\$(.*?)\$\$|\\\[(.*?)\\\]", text, re.DOTALL)
               or re.fullmatch(r"\$([^$]*)\$|\\\((.*)\\\)", sentence.strip(" *_")))
    return ((formula[1] or formula[2] or "") if formula else sentence).strip(" *_`")


def extract_answer(response: str, kind: str = "math") -> str | None:
    """The final answer that a response states, or None. A last box that is empty or cut off is no answer.

    kind "math": the last \\boxed or \\fbox, else what follows the last "answer is" (or "Answer:").
    kind "gsm8k": a number, from the last box, else after the last "####", else after "answer is", else the last number.
    kind "choice": the letter A to D that was stated last, in a box or after "answer is", "Answer:" and the like.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: want one of {', '.join(KINDS)}")
    if kind == "choice":
        return stated_choice(response)
    said = None
    if BOX.search(response):
        answer = rest = last_box(response) or ""
    elif kind == "gsm8k" and "####" in response:
        rest = response.rpartition("####")[2][:LONGEST]
        answer = rest.strip().partition("\n")[0]
    elif said := [mark.end() for mark in ANSWER_IS.finditer(response)]:
        rest = response[said[-1] :][:LONGEST]
        answer = stated(rest)
    elif kind == "gsm8k":
        end = max(map(response.rfind, "0123456789")) + 1
        return (NUMBER.findall(response[:end][-LONGEST:]) or [None])[-1]
    else:
        return None
    if kind == "math" or rational(answer) is not None:
        return answer or None
    # gsm8k, and more than a number: 18 cups, x = 18. But 18 or 19, in a box or after ####, is no answer.
    if not said and re.search(r"[,;]\s|\b(?:or|and)\b|\\frac", answer) and len(NUMBER.findall(answer)) > 1:
        return None
    number = NUMBER.search(answer.rpartition("=")[2]) or NUMBER.search(answer) or NUMBER.search(rest)
    return number[0] if number else None


ANNOUNCED = re.compile(r"""
    (?<![a-zA-Z0-9])(?:answer|option|choice)(?![a-zA-Z0-9])[*_]{0,2}\s{0,9}(?:\bis\b|[:=：])
    | <answer> | \\f?box(?:ed)?\s{0,9}\{""", re.VERBOSE | re.IGNORECASE)
DRESS = re.compile(r"""(?: </?[a-z]{1,9}> | [*_$(){}\[\]<"`“”‘（）:：\n] | (?<![A-Za-z])' | '(?![a-z]) | \\[()\[\]]
    | \\(?:text(?:bf)?|mathrm|mathbf|f?box(?:ed)?)(?![a-z]) )+""", re.VERBOSE)  # each run of it is read as a •
CHOSEN = re.compile(r"""
    (?:(?:•|,|therefore|thus|hence|clearly|definitely|probably|most\ likely|indeed|letter|option|choice|answer)\ )*
    (\S*)\ ?(.*)""", re.VERBOSE | re.IGNORECASE)
# Words after an A that is no article: "A because", not "A large force".
AFTER_A = set("because since as which for due and or with given that so not but is by while whereas when if then "
              "rather instead from where in here although though according only too on at".split())
# A hedge: another letter is named after it as well, or before it; "B, and A is wrong" is none.
HEDGED = re.compile(r"""
    [•.\ ]*(?:[,;/|+]|\\?&|or|and|as\ well\ as|vs)
    (?:\ (?:•|,|or|and|possibly|perhaps|maybe|else|even|option|choice|the\ answer\ is))*
    \ (?:[A-Eb-e](?=\ |$)|a(?=[•\ ]*\.?$))  # another letter; a small one is perhaps a word
    (?!(?:\ [•,]|\ and|\ or|\ [A-E])*\ (?:=|(?:is|are|was|were|can|does|do|has|have|would|being)\b))""", re.VERBOSE)
BESIDE = re.compile(r"""\b[A-E](?:[\s)*_$}]{0,9}\bor\s(?:[a-z]{1,9}\s){0,3}
    |[\s)]{0,2}\}[\s$}]{0,4}(?:[,;/]|or|and|\\text\{\s?(?:or|and)\s?\})[\s$]{0,4})$""", re.VERBOSE)


def stated_choice(response: str) -> str | None:
    """The letter A to D that the response states last; None for none, a hedge ("A or B") or no option (E)."""
    if alone := re.fullmatch(r"[\s*_(\[$]{0,9}([A-D])[\s*_)\].:$]{0,9}", response):
        return alone[1]
    response = response.rstrip()[-20 * LONGEST :]
    for mark in list(ANNOUNCED.finditer(response))[:-1000:-1]:  # from the last one on
        boxed = mark[0].endswith("{")
        if boxed and not last_box(response[mark.start() : mark.end() + 400]):
            return None  # empty or cut off
        rest = DRESS.sub(" • ", response[mark.end() : mark.end() + 400])
        words = re.findall(r"[A-Za-z0-9]+(?:['.][A-Za-z]+)*|\\?[^\s\w]", rest)
        letter, after = CHOSEN.match(" ".join(words)).groups()
        if letter.lower() in ("either", "both", "neither"):
            return None
        word = re.match(r"[a-z]+", after)
        article = letter == "a" or letter == "A" and mark[0][-1] in ":=："
        if (not re.fullmatch("[A-Za-z]", letter) or article and word and word[0] not in AFTER_A
                or letter in "aefghijklmnopqrstuvwxyz" and not boxed and after[:1] not in "•.,;"):
            continue  # a word
        hedged = HEDGED.match(after) or BESIDE.search(response[max(0, mark.start() - 60) : mark.start()])
        return letter.upper() if letter.upper() in "ABCD" and not hedged else None
    return None


# ---- Tokens: text → tokens, one spelling for each thing --------------------------------------------------------------

CHARACTERS = {**{chr(i): chr(i - 0xFEE0) for i in range(0xFF01, 0xFF5F)},  # full width
              **dict.fromkeys("−–—‐‑‒―－﹣", "-"), **dict.fromkeys("\u200b\u2060\ufeff", ""),
              **dict.fromkeys("\u00a0\u2009\u202f", " "),
              **{c: f"\\frac{n} " for c, n in zip("½⅓⅔¼¾", (12, 13, 23, 14, 34))}}
RENAMED = dict(pair.split() for pair in (
    r"\dfrac \frac,\tfrac \frac,\cfrac \frac,\nicefrac \frac,\sfrac \frac,\dbinom \binom,\tbinom \binom,** ^,"
    r"\times *,\cdot *,\ast *,\div /,× *,· *,⋅ *,÷ /,√ \sqrt,π \pi,θ \theta,\varphi \phi,∞ \infty,\infinity \infty,"
    r"\leq \le,\leqslant \le,<= \le,≤ \le,\geq \ge,\geqslant \ge,>= \ge,≥ \ge,\neq \ne,≠ \ne,\lt <,\gt >,"
    r"± \pm,∓ \mp,∪ \cup,\bigcup \cup,∈ \in,∅ \emptyset,\varnothing \emptyset,\colon :,\ldots \dots,\cdots \dots,"
    r"… \dots,\lbrace \{,\rbrace \},\lvert |,\rvert |,\vert |,\lbrack [,\rbrack ],"
    r'\% "percent,% "percent,\$ "dollar,€ "euro,¢ "cent,\degree "degree,° "degree').split(","))
UNITS = {name: unit for unit, *names in map(str.split, (
    "cm centimeter centimetre,mm millimeter millimetre,m meter metre,km kilometer kilometre,ft foot feet,in inch inche,"
    "yd yard,mi mile,g gram gm,kg kilogram,lb pound,oz ounce,hr hour h,min minute,s second sec s,yr year,gal gallon,"
    "l liter litre L,ml mL,dollar USD,mi/hr mph,km/hr kph").split(",")) for name in names}
SHORT_UNITS = set("cm mm km ft in yd kg mg lb lbs oz mph hr hrs ml mL kW MW mW Mg sec min gal am pm sq cu".split())
SCALES = {name: scale for scale, *names in map(str.split, (
    "100 hundred,10^3 thousand,10^6 million,10^9 billion,10^12 trillion,10^15 quadrillion,12 dozen,20 score,144 gross,"
    "1/2 half halve,1/3 third,1/4 quarter fourth,1/5 fifth,1/6 sixth,1/7 seventh,1/8 eighth,1/9 ninth,1/10 tenth,"
    "1/100 hundredth,1/1000 thousandth").split(",")) for name in names}
CHANGING = re.compile(r"""(?i)"(?:squared|cubed|(?:tri|\w+u)pled|doubled|halved|factorial|negative|minus|plus|below
    |above|under|over|less|fewer|more|zero|inverse|reciprocal|repeating|recurring|remainder|off|twice|not|of|to|by|mod
    |couple|myriad|\w*(?:teen|tie|lf|ion)ths?|\w+illions?)""", re.VERBOSE)  # words after a number that are no units
NAMES = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
            "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega infty ell emptyset".split())
FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln exp "
                "lcm gcd det max min".split())
SPELLED = FUNCTIONS - {"min", "max", "sec"} | {"sqrt", "pi", "theta", "infinity"}  # without a backslash, too
ACCENTS = set("overline bar vec hat mathbb mathcal overrightarrow".split())
ALIASES = {"or": ",", "and": ",", **dict.fromkeys(("degree", "degrees", "deg"), '"degree')}

TOKEN = re.compile(r"""
    (?P<skip> \s+ | [$~] | \\(?:left|right)\s*\. | \\[,;:!> ()\[\]] | (?<=sq)\. | (?<=cu)\.      # no meaning
      | \\(?:text)?color\s*\{[a-zA-Z]*\} | \\[hv]?phantom\s*(?:\{[^{}]*\}|[^\\{]) | \\[hm]space\*?\s*\{[^{}]*\} | \\\Z
      | \\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|q?quad|(?:neg)?(?:thin|med|thick)space|enspace
          |space|large|bf|mathbf|boldsymbol|bm|underline|mathit|mathsf)(?![a-zA-Z]) )
    | \\(?P<style>text(?:bf|it|rm|sf|normal)?|[mh]box|mathrm|operatorname\*?)\s*\{(?P<words>[^{}]*)\}
    | \\(?:begin|end)\s*\{[a-zA-Z]*\*?\}
    | (?P<between> (?<![^,;=$\s])(?<![-+*/]\s)           # a date, a score
        [0-9]+(?:(?:-[0-9]+)+|(?:\s-\s[0-9]+)*\s-\s0[0-9]|(?:/[0-9]+){2,})(?=\s*(?:[,;$.]|\Z))
      | (?<=[\w)}$]\s)(?:to|by|of|is|in|on|at|as|vs|per)(?=\s+[\w(\\$]) )                       # 5 to 1, 2 by 3
    | (?P<based> (?<![0-9A-Za-z])(?:[0-9A-F]+|[0-9a-f]{2,9}(?=_\{1[1-6]))_(?:\{[0-9]{1,2}\}|[0-9](?![0-9])) )
    | (?P<letters> [a-zA-Z]+ )
    | [0-9]*\.[0-9]*\\(?:overline|bar)\s*(?:\{[0-9]+\}|[0-9]) | [0-9]+(?:\.[0-9]+)? | \.[0-9]+  # numbers
    | \\[a-zA-Z]+ | \\. | \*\* | [<>]= | .""", re.VERBOSE | re.DOTALL)

SCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉"
REWRITTEN = [(re.compile(pattern), new) for pattern, new in [
    (r"^\s*(\*\*?|`)(.*)\1\s*\Z|^\s*=(?=\s*[^=\s])", lambda m: m[2] or ""),                   # **5**, =5
    (r"(?<![\w.])([0-9.]{1,40})[eE]([+-]?[0-9]{1,9})(?!\w)", r"\1*10^{\2}"),                  # 1e3
    (r"\{([^{}]*)\\over(?![a-z])", r"\\frac{\1}{"), (r"\{([^{}]*)\\choose(?![a-z])", r"\\binom{\1}{"),
    (r"^((?:[^a-zA-Z+=]|\\d?frac|\\sqrt)*[0-9})])(?:\s|\\[,; ]|~)+((?:[msLgh]|km)(?:/(?:h|s|min))?)(?![a-zA-Z/])"
     r"(?=\s*(?:\^\{?[0-9]\}?)?[\s$.]*\Z)", r"\1\\text{\2}"),                                  # 5 m, 9.8 m/s^2
    (r"(?<!\\)\\[()\[\]]", " "), (r"(?:^|(?<=[=($]))\s*~(?=\s*[^\sa-zA-Z])", r"\\approx "),      # ~5 is not 5
    (r"(?<![0-9.])([0-9]{0,20}\.[0-9]{0,20}?)([0-9]{1,12}?)\2{1,20}\s*(?:\\[lc]?dots(?![a-z])|…)",
     r"\1\\overline{\2}"),                                                                    # 0.333... is 1/3
    (f"[{SCRIPTS[:10]}]+|[{SCRIPTS[10:]}]+",                                                   # x¹² is x^{12}
     lambda m: "^_"[m[0] >= "₀"] + "{" + m[0].translate(str.maketrans(SCRIPTS, "0123456789" * 2)) + "}"),
    (r"\\\\\s*\[[^\]]{0,9}\]", r"\\\\"),                                                      # a row break's height
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})", r"\\degree "),
    (r"(\\(?:text|mathrm)\s*\{[^{}0-9]*)\^\{?([0-9])\}?\}", r"\1}^\2"),                       # \mathrm{cm^2}
    (r"(?:\\(?:text|mathrm)\s*\{|\()([0-9A-F]+)[})](?=\s*_)", r"\1"),                         # \text{A5}_{11}, (43)_5
    (r"(?i)(?<=[0-9])((?:\s|\\ |~|\\text\s*\{)*)([ap])\.?m\b\.?", lambda m: f"{m[1]} {m[2].lower()}m"),  # 4:30 P.M.
    (r"(?<=[0-9])(?:\{,\}(?:\\!)?|,\\!|\\,)\s{0,3}(?=[0-9]{3}(?![0-9]))", ""), (r"(?<!\\)\\,", " "),  # 10{,}000 and \,
]]
BRACKETED = re.compile(r"[(\[]|\\\{|\\langle|\\begin")
THOUSANDS = [re.compile(rf"(?<![0-9.,^_])(?<![\^_]{{)[1-9][0-9]{{0,2}}(?:{comma}[0-9]{{3}})+(?!,?[0-9])")
             for comma in ", "]
MIXED = re.compile(r"(?<![0-9./^_}])([0-9]+)(?:\s|\\ )+([0-9]+)\s*/\s*([0-9]+)(?![0-9.])")


def tokens_of(text: str) -> list[str]:
    """LaTeX or plain mathematics as tokens; a word or unit is a token that begins with a quote."""
    text = "".join(CHARACTERS.get(c, c) for c in text.replace("...", "…"))
    if len(text) > LONGEST:  # now that ½ is \frac12
        return ['"' + text]
    end = len(text.rstrip(".,;$ \n"))
    text = text[: end + text[:end].endswith("\\")]  # but for \, and \$
    text = reduce(lambda text, rule: rule[0].sub(rule[1], text), REWRITTEN, text)
    left, equals, right = text.rpartition("=")
    for pattern in THOUSANDS if not BRACKETED.search(right) else ():  # in brackets a comma separates
        right = pattern.sub(lambda number: re.sub("[, ]", "", number[0]), right)
    text = MIXED.sub(r"\1\\frac{\2}{\3}", left + equals + right)  # 2 3/4
    tokens = []
    for token in (token for match in TOKEN.finditer(text) for token in tokens_in(match)):
        if token[0].isdigit() and tokens and tokens[-1].isalpha() and tokens[-2:][0][-1].isdigit():
            tokens[-1] = '"' + tokens[-1]  # 2 x 3: a word between numbers
        word = token[1:].lower() if token[0] == '"' and tokens and tokens[-1][-1] in "0123456789}" else ""
        scale = SCALES.get(word, SCALES.get(word.removesuffix("s")))
        tokens += ["*", *re.findall("[0-9]+|.", scale)] if scale else [token]
    return tokens


def tokens_in(match: re.Match) -> list[str]:
    """The tokens of a match of TOKEN: most often itself."""
    token, letters, style = "".join(match[0].split()), match["letters"], match["style"]
    word = letters or (match["words"] or "").replace("~", " ").strip()
    if match["skip"] or style and not word:
        return []
    if match["between"]:
        return ['"' + token]
    if match["based"]:
        return based(*re.sub("[{}]", "", token).split("_"))
    if not word:
        return ["\\" + token] if token.isdigit() and not token.isascii() else [RENAMED.get(token, token)]  # no digit: ①
    if word in SPELLED:
        return [RENAMED.get("\\" + word, "\\" + word)]
    if style and (style.startswith("operatorname") or style == "mathrm" and len(word) == 1):
        return [word if len(word) == 1 and word.isalpha() else '"' + word]
    if word.lower() in ALIASES:
        return [ALIASES[word.lower()]]
    if letters:
        is_word = len(word) > 3 or word in SHORT_UNITS or len(word) == 3 and re.search("[eiouEIOU]", word)
        return ['"' + word] if is_word or word.lower() in ("no", "all") else [word]
    if re.search(r"[0-9,;=]|\w\s+(?:and|or)\b|\b(?:and|or)\s+\w", word):  # \text{3 or 4}: mathematics
        return [token for match in TOKEN.finditer(word) for token in tokens_in(match)]
    return ['"' + part.rstrip(".") for part in word.split()]


def based(digits: str, base: str) -> list[str]:
    """1011_2 is 11; A_1 and AB_12 are names."""
    if digits.isalpha():
        return [digits.upper() if base == "16" else digits, "_", base]
    try:
        return [str(int(digits, int(base) or 1))]
    except ValueError:  # 129_2
        return [f'"{digits}_{base}']


def as_string(tokens: list[str]) -> str:
    """The normalised string: no blanks but between two numbers, (A) as A, words but short units in small letters."""
    text = "".join(f" {t}" if i and t[0].isdigit() and tokens[i - 1][0].isdigit() else t for i, t in enumerate(tokens))
    text = re.sub(r"([_^])\{(.)\}(?![0-9])", r"\1\2", text)
    text = re.sub(r"^(\"?)\((\"?[a-zA-Z])\)$", r"\1\2", text)
    return re.sub(r'"(\w{4,}|(?<!.)\w+)?', lambda word: (word[1] or "").lower(), text)


def without_unit(tokens: list[str]) -> tuple[list[str], str]:
    """Tokens without currency in front or a unit at the end (words, perhaps with powers and slashes); and the unit."""
    for currency in {'"dollar', '"euro'} & {*tokens[:2]}:
        if tokens[-1] != currency and tokens[0] in (currency, "-"):
            return without_unit([t for i, t in enumerate(tokens) if i > 1 or t != currency])[0], currency[1:]
    # From the end: words, each perhaps with a power, and slashes; something must be left in front of them.
    functions = any(t[1:] in FUNCTIONS for t in tokens)  # of which a degree may be the argument's
    shape = "".join("w" if t[0] == '"' and not (t == '"degree' and functions) else t if t in {*"^/{}"} else "."
                    for t in reversed(tokens))
    end = len(tokens) - re.match(r"(?:(?:\}.\{\^w|.\^w|w(?!\^)|(?!^)/)(?=.))*", shape).end()
    words = [t if len(t) < 5 else t.lower() for t in tokens[end:]]  # Mg is not mg
    if not words or tokens[end - 1] in ("+", "-", "*", "/", "^", "_", "=") or any(map(CHANGING.fullmatch, words)):
        return tokens, ""
    unit = re.sub(r'["{}]', "", "".join("/" if word == '"per' else word for word in words))
    unit = re.sub(r"^(?:(cubic|cu)|square|sq)\.?(.*)", lambda m: f"{m[2]}^{3 if m[1] else 2}", unit)
    unit = re.sub(r"[a-zA-Z]+", lambda name: UNITS.get(name[0], UNITS.get(n := name[0].removesuffix("s"), n)), unit)
    return tokens[:end], re.sub(r"^unit\b.*", "", unit)


# ---- Values: numbers in one field ------------------------------------------------------------------------------------


# p = 4·k·Π(primes below 200) - 1 with (p - 1)/2 a prime q, too: every product of small primes is a square, and has one
# square as its root of any degree, so that roots multiply as real ones do (√8 = 2√2); exponents count modulo q.
PRIMES = [n for n in range(2, 1000) if all(n % d for d in range(2, math.isqrt(n) + 1))]  # 46 below 200
LARGE = math.prod(PRIMES[46:])
FIELDS = [4 * k * math.prod(PRIMES[:46]) - 1
          for k in (351, 764, 835, 906, 1335, 1779, 1841, 2343, 2361, 2506, 2827, 4816)]


class Undecided(Exception):
    """The text is outside the grammar, or too large: it is compared as a string."""


class NoRoot(Undecided):
    """This field has no root of a number of which the answer has one."""


def need(condition: object) -> None:
    if not condition:
        raise Undecided


class Residue(namedtuple("Residue", "p real imag exponent names")):
    """A number that is no Fraction: real + imag·i modulo p, for -1 is no square there.

    exponent: its value modulo p // 2, for use as an exponent; names: of which it is a product (each one's power is odd,
    so that with them it counts as positive), "?" if a prime in it has no root here, or None if it may be negative.
    """

    def __add__(self, other):
        other = residue(other, self.p)
        return Residue(self.p, (self.real + other.real) % self.p, (self.imag + other.imag) % self.p,
                       (self.exponent + other.exponent) % (self.p // 2), None)

    def __mul__(self, other):
        a, b = self, residue(other, self.p)
        odd = None if None in (a.names, b.names) or a.names & b.names - {"?"} else a.names | b.names  # x·x is |x|²
        return Residue(a.p, (a.real * b.real - a.imag * b.imag) % a.p, (a.real * b.imag + a.imag * b.real) % a.p,
                       a.exponent * b.exponent % (a.p // 2), odd)

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, n):
        if n < 0:
            need(self.exponent)
            norm = pow(self.real**2 + self.imag**2, -1, self.p)
            return self._replace(real=self.real * norm % self.p, imag=-self.imag * norm % self.p,
                                 exponent=pow(self.exponent, -1, self.p // 2)) ** -n
        one = value = residue(1, self.p)
        for bit in f"{n:b}":
            value = value * value * (self if bit == "1" else one)
        return value._replace(names=None if self.names and n % 2 == 0 else self.names)

    def __eq__(self, other):
        return self.point == residue(other, self.p).point

    @property
    def point(self):
        return self.real, self.imag


def residue(value: Rational | Residue, p: int) -> Residue:
    if isinstance(value, Residue):
        return value
    need(isinstance(value, Rational) and bits(value) <= 280)  # so that no number but 0 vanishes in the field
    real, exponent = (value.numerator * pow(value.denominator, -1, n) % n for n in (p, p // 2))
    large = math.gcd(value.numerator * value.denominator, LARGE) if value > 0 else 1
    rootless = large > 1 and any(pow(n, p // 2, p) != 1 for n in PRIMES if large % n == 0)
    return Residue(p, real, 0, exponent, frozenset("?" * rootless) if value > 0 else None)


def bits(value: Rational) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The positive root if it is rational; None if not, or if value is not positive or is too long."""
    if value <= 0 or bits(value) > 1000:
        return None
    roots = [0, 0]
    for i, n in enumerate(value.as_integer_ratio()):
        for bit in range(n.bit_length() // degree, -1, -1):  # the largest root with root^degree <= n
            roots[i] += ((roots[i] + (1 << bit)) ** degree <= n) << bit
    return Fraction(*roots) if Fraction(*roots) ** degree == value else None


def literal(token: str) -> Fraction:
    """12, 0.5 or 0.1\\overline{6}, exactly. By way of Decimal, for int() refuses more than 4,300 digits."""
    token, _, repeated = token.partition("\\")
    value, period = Fraction(Decimal("0" + token)), re.sub(r"[^0-9]", "", repeated)
    if period:
        value += Fraction(Decimal(period)) / (10 ** len(period) - 1) / 10 ** len(token.partition(".")[2])
    return value


def determinant(rows: list[list]) -> Fraction | Residue:
    """By the first row."""
    minors = ([row[:i] + row[i + 1 :] for row in rows[1:]] for i in range(len(rows)))
    return sum(((-1) ** i * rows[0][i] * determinant(minor) for i, minor in enumerate(minors)), Fraction(not rows))


OPEN, CLOSE = ("(", "[", "{", "\\{", "\\langle"), (")", "]", "}", "\\}", "\\rangle")
ORDERS = {"<": "<", "\\le": "\\le", "\\ne": "\\ne", ">": "<", "\\ge": "\\le"}  # 3 > x is x < 3
NAMED = re.compile(r"""                                  # what may stand before the = of an answer:
    [a-zA-Z]{1,3}'?(?:_\{?[\w\\]{1,9}\}?)?(?:\([a-zA-Z0-9](?:,[a-zA-Z0-9])*\))?      # x, AB, x_1, f(x), f(3)
    | \((?:[a-zA-Z],)+[a-zA-Z]\) | \{?[a-zA-Z]\}?        # (x,y)
    | \\[a-zA-Z]+(?:\{?[a-zA-Z]{1,3}\}?)? | \"[^0-9]*    # \theta, \overline{AB}, words""", re.VERBOSE)
SQUARES = {k: Fraction(n, 4) for n, at in enumerate([[0], [2, 10], [3, 9], [4, 8], [6]]) for k in at}  # of sin(k·π/12)
RATIOS = {"\\tan": ("\\sin", "\\cos"), "\\cot": ("\\cos", "\\sin"), "\\sec": ("", "\\cos"), "\\csc": ("", "\\sin")}
ARCS = {"\\arcsin": ("\\sin", range(-6, 7)), "\\arccos": ("\\cos", range(13)), "\\arctan": ("\\tan", range(-5, 6))}
SEVERAL = {"\\gcd": lambda values: math.gcd(*map(int, values)), "\\lcm": lambda values: math.lcm(*map(int, values)),
           "\\max": max, "\\min": min}
PROPER = re.compile(r"\\frac(?:\{([0-9]{1,9})\}|([0-9]))(?:\{([0-9]{1,9})\}|([0-9])(?![0-9]))")
FREE = re.compile(r"[a-z]=[a-z]\([a-z](?:,[a-z])*\)")  # f(x) = ... may be called y = ...


class Field:
    """Powers, roots, names and functions in the field of p elements, with i, in a limited number of steps."""

    p = work = 0

    def spend(self, steps: int) -> None:
        self.work += steps
        need(self.work <= 20_000)  # some 20 ms

    def kept(self, value):
        """The result of a sum or product, if it is not too long."""
        self.spend(2 if isinstance(value, Residue) else 1 + (bits(value) // 1800) ** 2)
        return value

    def random(self, *key, names=None):
        """A number that stands for a name or a function of what the key says; a square if it counts as positive."""
        self.spend(10)
        p, q = (int(hashlib.sha512(repr((n, key)).encode()).hexdigest(), 16) % n for n in (self.p, self.p // 2))
        return Residue(self.p, p if names is None else p * p % self.p, 0, q, names)

    def name(self, name):
        value = self.random("name", name, names=frozenset([name]) - {"\\pi"})
        return value._replace(real=0, imag=1, names=None) if name == "i" else value

    def power(self, base, exponent):
        self.spend(10)
        if isinstance(exponent, Residue):  # 2^x: known of a square, whose powers repeat after p // 2
            self.spend(90)
            base = residue(base, self.p)
            if base.names is None or pow(base.real, self.p // 2, self.p) != 1:
                return self.random("^", base.point, exponent.point)
            value = self.random("^", base.point, exponent.exponent)
            return value._replace(real=pow(base.real, exponent.exponent, self.p), names=base.names)
        n, d = exponent.numerator, exponent.denominator
        need(abs(n) <= 10**6 and d <= 1000)
        if base == 0:
            need(n > 0)
            return base
        if d > 1:
            return self.root(base, exponent)
        return base**n if isinstance(base, Fraction) and abs(n) * bits(base) < 20_000 else residue(base, self.p) ** n

    def root(self, base, exponent):
        """base^(n/d) for d > 1: exact if it is rational; of a negative base if d is odd, or 2 (by way of i)."""
        n, d = exponent.numerator, exponent.denominator
        if isinstance(base, Fraction):
            if (exact := exact_root(base, d)) is not None:
                return self.power(exact, n)
            if base < 0:
                need(d == 2 or d % 2)
                return self.power(Fraction(-1) if d % 2 else self.name("i"), n) * self.power(-base, exponent)
        base = residue(base, self.p)
        if base.names is None:  # of a sum: its sign is not known
            return self.random("root", base.point, exponent)
        self.spend(100)
        if "?" in base.names or pow(base.real, self.p // 2, self.p) != 1:
            raise NoRoot
        real = pow(base.real, n * pow(d, -1, self.p // 2) % (self.p // 2), self.p)
        return self.random("root", base.exponent, exponent)._replace(real=real, names=base.names)

    def function(self, name, base, *values):
        """A function: exact for \\log_2 8, \\sin\\frac{\\pi}{6} or \\arctan 1, as a ratio for \\tan x, else random."""
        x, pi = values[0], self.name("\\pi")
        unknown = self.random(name, base.point, *(value.point for value in values))
        if len(values) > 1 or x.imag:
            return unknown
        if name == "\\exp":
            return self.power(self.name("e"), x)
        if name in RATIOS:
            above, below = (self.function(part, base, x) if part else Fraction(1) for part in RATIOS[name])
            return above * self.power(below, -1)
        if name in ("\\log", "\\ln"):
            self.spend(250)
            need(not base.imag and base.real > 1)
            powers = {pow(base.real, n, self.p): n for n in range(-20, 21)}
            positive = all(pow(value.real, self.p // 2, self.p) == 1 for value in (base, x))
            exact = (Fraction(powers[y], d) for d in range(1, 7) if (y := pow(x.real, d, self.p)) in powers)
            return next(exact, unknown) if positive else unknown
        if name in ARCS:
            function, angles = ARCS[name]
            angles = [Fraction(k, 12) * pi for k in angles if k % 12 in SQUARES]
            return next((angle for angle in angles if x == self.function(function, base, angle)), unknown)
        k = 12 * x.real * pow(pi.real, -1, self.p) % self.p  # x is k·π/12
        k = min(k, k - self.p, key=abs) + 6 * (name == "\\cos")
        if name not in ("\\sin", "\\cos") or k % 12 not in SQUARES or abs(k) > 10**6:
            return unknown
        return Fraction(-1) ** (k // 12) * self.power(SQUARES[k % 12], Fraction(1, 2))


# ---- Parts: tokens → an Answer ---------------------------------------------------------------------------------------

# What has been read. kind: "number", "equation", "list", "set", "union", "tuple", "matrix", "row", "order", "named" or
# "text"; form: a number's unit, a tuple's brackets, an order's signs, the name of what is named, a text; parts: the
# Answers in it, or the value of a number; tokens: of an expression or a name.
Answer = namedtuple("Answer", "kind form parts tokens", defaults=("", (), ()))


def opened(token: str) -> int:
    """1 for what opens a bracket or a matrix, -1 for what closes one, 0 for any other token."""
    return (token in OPEN or token.startswith("\\begin")) - (token in CLOSE or token.startswith("\\end"))


class Reader(Field):
    """Reads tokens as mathematics, and compares what it has read."""

    def split(self, tokens: list[str], *separators: str) -> list[list[str]]:
        """The runs of tokens between separators that stand in no bracket."""
        self.spend(len(tokens) // 8 + 1)
        depths = list(accumulate(map(opened, tokens)))
        need(not tokens or depths[-1] == 0 and min(depths) >= 0)
        at = [i for i, token in enumerate(tokens) if token in separators and depths[i] == 0]
        return [tokens[i + 1 : j] for i, j in zip([-1, *at], [*at, len(tokens)])]

    def read(self, tokens: list[str]) -> Answer:
        need(tokens)
        parts = [part for part in self.split(tokens, ",", ";") if part]
        if len(parts) != 1:
            return Answer("list", "", self.items(parts))
        tokens = parts[0]
        if len(sets := self.split(tokens, "\\cup")) > 1:
            return Answer("union", "", [self.read(part) for part in sets])
        if len(sides := self.split(tokens, "=", "\\in")) > 1:
            return self.read_equation(sides, tokens)
        if signs := [token for token in tokens if token in ORDERS]:
            sides = [self.read(side) for side in self.split(tokens, *ORDERS)]
            turned = {ORDERS[sign] != sign for sign in signs}
            need(len(turned) == 1 and (len(signs) == 1 or "\\ne" not in signs))
            way = -1 if turned == {True} else 1
            return Answer("order", [ORDERS[sign] for sign in signs][::way], sides[::way])
        if opened(tokens[0]) == 1 and 0 not in list(accumulate(map(opened, tokens)))[:-1]:  # closed by the last token
            return self.read_enclosed(tokens[0], tokens[1:-1], tokens[-1])
        if matrix := next((i for i, token in enumerate(tokens) if token.startswith("\\begin")), 0):
            return self.read_multiple(tokens[:matrix], self.read(tokens[matrix:]), tokens)
        if {"\\pm", "\\mp"} & set(tokens):
            two = [self.read([{"\\pm": up, "\\mp": down}.get(token, token) for token in tokens])
                   for up, down in ("+-", "-+")]
            return two[0] if self.same(*two) else Answer("list", "", two)
        if all(token[0] == '"' for token in tokens):
            return Answer("text", "".join(tokens).replace('"', "").lower())
        number, unit = without_unit(tokens)
        functions = any(t[1:] in FUNCTIONS for t in number)
        self.degree = Fraction(1, 180) * self.name("\\pi") if functions else 1
        need("\\infty" not in number or [t for t in number if t not in "+-"] == ["\\infty"])  # no \infty - \infty
        # A bare run of letters is a product here, and a name if it is alone: AB is not BA.
        self.tokens = [name for t in number for name in (t if t.isalpha() else [t])]
        self.at, self.bars = 0, False  # bars: whether a | closes the |a| that is being read
        value = self.sum()
        need(self.at == len(self.tokens))
        return Answer("number", unit, [value], tokens if len(tokens) == 1 else self.tokens)

    def items(self, parts):
        """The items of a list; one with a \\pm is two."""
        return [item for part in map(self.read, parts) for item in (part.parts if part.kind == "list" else [part])]

    def read_enclosed(self, first, inner, last):
        """A matrix, a set, a tuple or interval, or what stands in brackets alone."""
        if first == "\\begin{vmatrix}":
            return self.read(["\\det", "\\begin{matrix}", *inner, "\\end{matrix}"])
        if first.startswith("\\begin"):
            need(re.fullmatch(r"\\begin\{(?:[pb]?(?:small)?matrix\*?|array)\}", first))
            if first == "\\begin{array}" and inner[:1] == ["{"] and "}" in inner:  # the columns' alignment
                inner = inner[inner.index("}") + 1 :]
            rows = [self.split(row, "&") for row in self.split(inner, "\\\\") if row]
            return Answer("matrix", "", [Answer("row", "", [self.read(cell) for cell in row]) for row in rows])
        parts = self.split(inner, ",", ";")
        if first == "\\{" and inner:
            return Answer("set", "", self.items([part for part in parts if part]))
        if len(parts) > 1 and first != "{":
            need(sum(token in ("\\pm", "\\mp") for token in inner) < 2)  # does one sign follow the other?
            return Answer("tuple", first + last, [self.read(part) for part in parts])
        return self.read(inner or ["\\emptyset"] * (first == "\\{"))

    def read_equation(self, sides, tokens):
        """x = 5 is 5 with a name, 2 + 3 = 5 is 5, and of any other equation what one side exceeds the other by."""
        named = [bool(NAMED.fullmatch("".join(side))) for side in sides]
        named[-1] &= not all(named)
        names = [side for side, is_name in zip(sides, named) if is_name]
        values = [self.read(side) for side, is_name in zip(sides, named) if not is_name]
        if all(self.same(value, values[-1]) for value in values):
            return Answer("named", "".join(names[0]), values[-1:], names[0]) if names else values[-1]
        need(len(sides) == 2 and any(t.isalpha() or t[1:] in NAMES - {"pi"} for t in tokens))  # 1 = 2
        need(values[0].kind == values[1].kind == "number")
        return Answer("equation", "", values, tokens)

    def read_multiple(self, factor, matrix, tokens):
        """A number times a matrix, or its determinant."""
        need(matrix.kind == "matrix" and all(cell.kind == "number" for row in matrix.parts for cell in row.parts))
        rows = [row.parts for row in matrix.parts]
        if factor == ["\\det"]:
            need(len(rows) < 6 and all(len(row) == len(rows) for row in rows))
            return Answer("number", "", [determinant([[cell.parts[0] for cell in row] for row in rows])], tokens)
        by = self.read([*factor, "1"] if factor == ["-"] else factor)
        need(by.kind == "number")
        return Answer("matrix", "", [
            Answer("row", "", [cell._replace(parts=[by.parts[0] * cell.parts[0]], tokens=[*factor, *cell.tokens])
                               for cell in row]) for row in rows])

    # An expression, by recursive descent. Each method reads what begins at the token number self.at.
    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted=None):
        token = self.peek()
        need(token and wanted in (None, token))
        self.at += 1
        return token

    def sign(self):
        return -1 if self.peek() == "-" and self.take() else 1

    def sum(self):
        total = self.product() if self.peek() not in ("+", "-") else Fraction(0)
        while self.peek() in ("+", "-"):
            total = self.kept(total + (-1 if self.take() == "-" else 1) * self.product())
        return total

    def product(self, functions=True):
        """Factors with signs or side by side. The argument of a function ends before the next: sin 2x cos x."""
        value, kind = self.factor()
        while (token := self.peek()) and token not in ("+", "-", ",", *CLOSE):
            before = kind
            ahead = self.tokens[self.at + (token in ("*", "/")) :][:1]
            if token == "|" and self.bars or not functions and ahead and ahead[0][1:] in FUNCTIONS:
                break  # sin x / cos x
            if token in ("*", "/"):
                self.take()
                sign = self.sign()
                factor, kind = self.factor()
                factor = sign * (self.power(factor, -1) if token == "/" else factor)
            else:
                factor, kind = self.factor()
                need(not (before and kind) or before == kind == "power")  # two numbers want a sign between them
            value = self.kept(value * factor)
        return value

    def factor(self):
        """An atom with its powers and factorials; and "number", "power" of a number, or "" for anything else."""
        start = self.at
        value = self.atom()
        if self.tokens[start].isdigit() and (proper := PROPER.match("".join(self.tokens[self.at : self.at + 7]))):
            numerator, denominator = (int(digits) for digits in proper.groups() if digits)
            value += self.atom() if 0 < numerator < denominator else 0  # 2\frac34 is 2 + 3/4
        digits = all(t == "\\frac" or t[0] in "{}.0123456789" for t in self.tokens[start : self.at][:9])
        kind = digits * ("power" if self.peek() == "^" else "number")
        while self.peek() in ("^", "!", '"degree'):
            if (token := self.take()) == "!":
                step = 2 if self.peek() == "!" and self.take() else 1  # 5!! is 5·3·1
                need(self.peek() != "!")
                value = Fraction(math.prod(range(self.whole(value, 3000), 0, -step)))
            elif token == "^":
                value = self.power(value, self.exponent())
            else:
                value = value * self.degree
        return value, kind

    def exponent(self):
        sign, value = self.sign(), self.atom()
        return sign * (self.power(value, self.exponent()) if self.peek() == "^" and self.take() else value)  # 2^3^4

    def argument(self):
        """Of \\frac: a group, one token, or of a run of digits the first, as TeX reads \\frac12."""
        token = self.peek()
        if len(token) > 1 and token.isdigit():
            self.tokens[self.at : self.at + 1] = token[0], token[1:]
        return self.atom()

    def whole(self, value, most):
        need(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= most)
        self.spend(int(value))
        return int(value)

    def atom(self):
        """A number, a bracket, a command with its arguments, or a name."""
        token, start = self.take(), self.at
        if token[0].isdigit() or token[0] == "." and len(token) > 1:
            return literal(token)
        if token in ("(", "[", "{"):
            bars, self.bars = self.bars, False
            value = self.sum()
            self.take(CLOSE[OPEN.index(token)])
            self.bars = bars
            return value
        if token == "\\frac":
            return self.argument() * self.power(self.argument(), -1)
        if token == "\\sqrt":
            degree = self.atom() if self.peek() == "[" else Fraction(2)
            return self.power(self.atom(), self.power(degree, -1))
        if token == "\\binom":
            return Fraction(math.comb(self.whole(self.argument(), 1000), self.whole(self.argument(), 1000)))
        if token == "|":
            return self.absolute()
        if token[1:] in FUNCTIONS or token in ("f", "g") and self.peek() == "(":
            return self.applied(token)
        if token[1:] in ACCENTS:
            self.atom()
            need(not all(t.isdigit() or t in "{}" for t in self.tokens[start : self.at]))  # a period is no number
            return self.random(token, self.tokens[start : self.at])
        need(token.isalpha() or token[1:] in NAMES)
        if self.peek() == "_":
            self.take()
            while self.take() != "}" and self.tokens[start + 1] == "{":
                pass
        return self.name(token + "".join(t for t in self.tokens[start : self.at] if t not in "{}"))

    def absolute(self):
        """|a|: of a number, or of an expression without names that counts as positive, itself; else unknown."""
        self.bars = True
        value = self.sum()
        self.bars = False
        self.take("|")
        if isinstance(value, Fraction):
            return abs(value)
        if value.imag:
            norm = (value.real**2 + value.imag**2) % self.p
            return self.power(value._replace(real=norm, imag=0, names=frozenset()), Fraction(1, 2))
        positive = value.names is not None and value.names <= {"?"}
        return value if positive else self.random("||", min(value.real, self.p - value.real))

    def applied(self, name):
        """sin x, \\log_2 8, \\tan^2(x), \\gcd(12, 18), f(5): a function, its base, of what, and to what power."""
        base, power = self.name("e") if name == "\\ln" else Fraction(10), 1
        while token := self.peek() in ("_", "^") and self.take():
            base = self.argument() if token == "_" else base
            power = self.exponent() if token == "^" else power
        if power == -1:
            name, power = name.replace("\\", "\\arc"), 1  # \sin^{-1} x is \arcsin x
        values = self.arguments() if self.peek() in ("(", "[", "{", "\\{") else [self.product(functions=False)]
        if self.peek() == '"degree' and self.take():
            values = [value * self.degree for value in values]
        if name in SEVERAL and all(isinstance(value, Fraction) for value in values):
            need(name in ("\\max", "\\min") or all(value.denominator == 1 for value in values))
            return self.power(Fraction(SEVERAL[name](values)), power)
        base, *values = (residue(value, self.p) for value in (base, *values))
        return self.power(self.function(name, base, *(sorted(values) if name in SEVERAL else values)), power)

    def arguments(self):
        """The values in (12, 18) or \\{3, 5\\}."""
        close, values = CLOSE[OPEN.index(self.take())], [self.sum()]
        while self.peek() == "," and self.take():
            values.append(self.sum())
        self.take(close)
        return values

    # ---- Same: two Answers → whether they are equal ------------------------------------------------------------------

    def same(self, a: Answer, b: Answer) -> bool:
        """Whether two answers are equal."""
        self.spend(10)
        a, b = sorted((a, b), key=lambda answer: answer.kind)
        match a.kind, b.kind:
            case "named", "named" if a.form == b.form or FREE.fullmatch("=".join(sorted((a.form, b.form), key=len))):
                return self.same(*a.parts, *b.parts)
            case "equation" | "named", "equation" | "named":
                self.spend(500)
                x, y = self.difference(a), self.difference(b)
                ratio = x * y**-1 if any(y.point) else x  # a fraction: 2y = 4x + 2 is y = 2x + 1
                return x == y or not ratio.imag and any(
                    0 < min(n := ratio.real * d % self.p, self.p - n) < 1000 for d in range(1, 1000))
            case "list", "named" if each := self.each(b.form, *b.parts):
                return self.matched(a.parts, each)
            case _, "named":
                return self.same(a, *b.parts)
            case "named", _:
                return self.same(*a.parts, b)
            case "list" | "set", "set":
                return all(any(self.same(x, y) for y in v)
                           for u, v in ((a.parts, b.parts), (b.parts, a.parts)) for x in u)
            case "number", "number":
                return self.same_number(a, b)
            case "order", "tuple":
                return self.same(self.interval(a.form, a.parts), b)
        if a.kind != b.kind or a.form != b.form:
            return False
        return (self.matched if a.kind in ("list", "union") else self.all_same)(a.parts, b.parts) or (
            a.form == ["\\ne"] and self.all_same(a.parts, b.parts[::-1]))

    def same_number(self, a, b):
        """Equal in value, and in unit if both have one; names alone as they are written."""
        if all(len(answer.tokens) == 1 and answer.tokens[0].isalpha() for answer in (a, b)):
            return a.tokens == b.tokens
        units = {a.form, b.form} - {""}
        x, y = (answer.parts[0] * (100 if answer.form == "dollar" and "cent" in units else 1) for answer in (a, b))
        return (len(units) < 2 or units == {"cent", "dollar"}) and x == y

    def each(self, name, value):
        """(a, b) = (1, 2) as a = 1, b = 2; nothing for any other name and value."""
        names = name[1:-1].split(",")
        fits = name[0] == "(" and value.form == "()" and len(names) == len(value.parts)
        return [Answer("named", name, [part], [name]) for name, part in zip(names, value.parts) if fits]

    def interval(self, signs, sides):
        """x > 3 as (3, \\infty), 1 <= x < 2 as [1, 2), for a letter."""
        at = [i for i, side in enumerate(sides) if side.kind == "number" and len(side.tokens) == 1
              and side.tokens[0][0].isalpha()]
        need(len(at) == 1 and "\\ne" not in signs and (len(sides) == 2 or len(sides) == 3 and at == [1]))
        low = at == [0] and self.read(["-", "\\infty"])
        high = at == [len(sides) - 1] and self.read(["\\infty"])
        brackets = "[("[bool(low) or signs[0] == "<"] + "])"[bool(high) or signs[-1] == "<"]
        return Answer("tuple", brackets, [low or sides[0], high or sides[-1]])

    def difference(self, answer):
        """What the left side of an equation, or of x = 5, exceeds the right one by."""
        need(not {"(", '"'} & {*answer.form})  # f(2) is no product
        left, right = answer.parts if answer.kind == "equation" else (self.read(answer.tokens), *answer.parts)
        need(left.kind == right.kind == "number")
        return residue(left.parts[0], self.p) + -1 * right.parts[0]

    def equal(self, left, right):
        """Whether two token lists say the same; as the whole answer {5} is 5."""
        a, b = self.read(left), self.read(right)
        if {a.kind, b.kind} == {"set", "number"}:
            a, b = (v.parts[0] if v.kind == "set" and len(v.parts) == 1 else v for v in (a, b))
        return self.same(a, b)

    def all_same(self, a, b):
        return len(a) == len(b) and all(map(self.same, a, b))

    def matched(self, a, b):
        """Whether the one list is the other in some order; x = 3, y = 4 is 3, 4 in this order alone."""
        named = [[answer.form for answer in answers if answer.kind == "named"] for answers in (a, b)]
        if not all(named) and max(len(set(names)) for names in named) > 1:
            return self.all_same(a, b)
        left = list(b)
        for x in a:
            i = next((i for i, y in enumerate(left) if self.same(x, y)), None)
            if i is None:
                return False
            del left[i]
        return not left


def decided(judge, fields: int):
    """What judge(reader) says in so many fields, if it says yes in all; a field without a root is passed over."""
    reader = Reader()
    for reader.p in FIELDS:
        try:
            said = judge(reader)
        except NoRoot:
            continue
        except (Undecided, RecursionError):
            return None
        fields -= 1
        if not said or not fields:
            return said


# ---- Verdict ---------------------------------------------------------------------------------------------------------


def is_correct(response: str, gold: str, kind: str = "math") -> bool:
    """Whether the answer that a response states equals the gold one; of kind gsm8k this may be a whole solution."""
    return matches(extract_answer(response, kind), gold, kind)


def matches(answer: str | None, gold: str, kind: str) -> bool:
    """Whether an extracted answer equals the gold one."""
    if kind == "gsm8k" and answer is not None:
        return rational(answer) == rational(gold.rpartition("####")[2]) is not None
    return answer is not None and (answer == gold.strip().upper() if kind == "choice" else equal(answer, gold))


def equal(a: str, b: str) -> bool:
    """Whether two answers are the same mathematics; where that is undecided, the same normalised string."""
    if a.split() == b.split() or max(len(a), len(b)) > LONGEST:
        return a.split() == b.split()
    left, right = tokens_of(a), tokens_of(b)
    if as_string(left) == as_string(right):
        return bool(as_string(left))
    return len(left) + len(right) < 4000 and bool(decided(lambda reader: reader.equal(left, right), 2))


def rational(text: str) -> Fraction | None:
    """The rational number that a text states, exactly; None where it states none."""
    if len(text) > LONGEST or len(tokens := tokens_of(text)) >= 500:
        return None
    answer = decided(lambda reader: reader.read(tokens), 1)
    if answer and answer.kind == "named":
        answer, = answer.parts
    return answer.parts[0] if answer and answer.kind == "number" and isinstance(answer.parts[0], Fraction) else None


# ---- The command -----------------------------------------------------------------------------------------------------


def shown(answer: Answer) -> str:
    """An Answer as plain text; an expression as its tokens."""
    kind, form, parts, tokens = answer
    if kind in ("number", "equation"):
        tokens = [str(*parts)] if isinstance(parts[0], Fraction) and kind == "number" else tokens
        return " ".join([*tokens, form]).replace('"', "").strip()
    texts = list(map(shown, parts))
    if kind == "order":
        return texts[0] + "".join(f" {sign} {text}" for sign, text in zip(form, texts[1:]))
    if kind == "named":
        return f"{form} = {texts[0]}"
    if kind == "text":
        return form
    brackets = {"set": "{}", "matrix": "[]"}.get(kind, form)
    left, right = re.findall(r"\\(?:[a-z]+|.)|.", brackets) or ("", "")
    return left + {"union": " \\cup ", "matrix": "; "}.get(kind, ", ").join(texts) + right


def reading(text: str, kind: str) -> str:
    """How matches() reads an answer, in words."""
    if kind == "choice":
        return f"read as the letter {text.strip().upper()}"
    if kind == "gsm8k":
        number = rational(text.rpartition("####")[2])
        return "no number" if number is None else f"read as the number {number}"
    answer = decided(lambda reader: reader.read(tokens_of(text)), 1) if len(text) <= LONGEST else None
    if answer is None:
        return "compared as a string"
    what = {"tuple": "tuple or interval", "order": "inequality", "named": "named value"}.get(answer.kind, answer.kind)
    exact = what != "number" or isinstance(answer.parts[0], Fraction)
    return f"read as the {what if exact else 'expression'} {shown(answer)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="grader.py", allow_abbrev=False, epilog='example: python grader.py "so \\boxed{\\frac12}" 0.5',
        description="Says whether an answer is right, and how it and the gold one were read. Exit status: 0 for right, "
                    "1 for wrong, 2 for a mistake in the flags.")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("response", help="what a model wrote; of kind math a bare answer will do")
    parser.add_argument("gold", help="the answer that it should state")
    parser.add_argument("--kind", choices=KINDS, default="math", help="what is looked for (default: math)")
    # A blank in front of -x: argparse would take it for a flag.
    args = parser.parse_args([re.sub(r"^-(?!-|h$)", " -", word) for word in sys.argv[1:]])
    response, gold, kind = args.response.strip(), args.gold.strip(), args.kind
    sys.stdout.reconfigure(errors="replace")
    answer = extract_answer(response, kind)
    if answer is None and kind == "math" and response and not BOX.search(response):
        answer = response
        print('no box and no "answer is": the whole response is taken as the answer')
    right = matches(answer, gold, kind)
    print("right" if right else "wrong")
    width = max(len(answer or "none"), len(gold))
    for name, text in ("answer", answer), ("gold", gold):
        read = reading(text, kind) if text else "no answer is stated"
        print(f"{name:6}  {' '.join((text or 'none').split()):{width}}  {read}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
