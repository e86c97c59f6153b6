r"""Whether the answer that a response states equals the gold one: exact, in pure Python, and this file is all of it.

    is_correct(r"so \boxed{\frac12}", "0.5")          True; kind="gsm8k" is for GSM8K's numbers, "choice" for letters
    python grader.py "so \boxed{\frac12}" 0.5         the same, and how both were read

Equal are the ways to write one thing: 1/2, 0.5, 2/4; 0.333... and 1/3; 2\frac34 and 2.75; 1,234 and 1234; √8 and 2√2;
(x+1)² and x²+2x+1; 3 ± 1 and 4, 2; lists and sets in any order, tuples, intervals and matrices in theirs; x = 5 and
5; x > 3 and (3, ∞); an equation and its multiples; (1+i)² and 2i; log₄ 8 and 3/2; arcsin 1 and π/2; gcd(4, 6) and 2;
5 cm and 5 (not 5 m); 10% and 10 (not 0.1) and 30° and 30 (not within sin), as MATH's answers have it. What may be
read in two ways is read so that less is equal: letters alone are a name (AB is not BA, A·B is B·A), AB_{12} too; 3-2
is a score, 5 dozen 60, sin⁻¹ an inverse, ∞ - ∞ nothing. Outside of this grammar the same string without its blanks is
equal, nothing else. No tolerance (0.333 is not 1/3), no float, no running of text, no judge and no guess: what can't
be decided (a root of a sum) is wrong.

Read it top to bottom. What each stage makes of "so \boxed{(\frac12, 2x)}":

    extract   extract_answer               response → the answer's text     (\frac12, 2x)
    tokens    tokens_of                    text → tokens                    ( \frac 12 , 2 x )
    parts     Reader.read                  tokens → (kind, parts ...)       ("tuple", "()", [½, 2x])
    values    Reader.sum, times, power     tokens → a number in one field   Fraction(1, 2), and a Residue for 2x
    same      Reader.same, same_value      two read answers → yes or no     equal part by part, in two fields
    verdict   is_correct, matches, equal   response and gold → yes or no    or else equal as strings

Rationals are compared as rationals, all else by its value at a random point of two prime fields of over 283 bits: an
accident is out of the question, and x^p and x + p are not x, for exponents stay below 10^6 and numbers below p. Checked
by test_grader.py::test_the_fields_are_what_the_grader_needs.
Of 800 and 165 labelled MATH outputs 800 and 163 are decided as labelled, by Math-Verify 0.9.0 792 and 160; of 6,595 on
GSM8K 6,592, 6,590; of 84 test cases of other graders 63, 61. A row of MATH takes 0.09 and 0.68 ms of CPU time here,
2.32 and 21.92 ms there (python experiments/graders.py; row by row in tests/grading_notes.md).
"""

import argparse
import hashlib
import math
import operator
import re
import sys
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from functools import partialmethod, reduce
from itertools import accumulate

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
    end = None
    if BOX.search(response):
        answer = rest = last_box(response) or ""
    elif kind == "gsm8k" and "####" in response:
        rest = response.rpartition("####")[2][:LONGEST]
        answer = rest.strip().partition("\n")[0]
    else:
        end = max((mark.end() for mark in ANSWER_IS.finditer(response)), default=None)
        if kind == "gsm8k" and end is None:
            end = max(response.rfind(digit) for digit in "0123456789") + 1
            return (NUMBER.findall(response[max(0, end - LONGEST) : end]) or [None])[-1]
        if end is None:
            return None
        rest = response[end : end + LONGEST]
        answer = stated(rest)
    if kind == "math" or rational(answer) is not None:
        return answer or None
    # gsm8k, and more than a number: 18 cups, x = 18. But 18 or 19, in a box or after ####, is no answer.
    if end is None and re.search(r"[,;]\s|\b(?:or|and)\b|\\frac", answer) and len(NUMBER.findall(answer)) > 1:
        return None
    number = NUMBER.search(answer.rpartition("=")[2]) or NUMBER.search(answer) or NUMBER.search(rest)
    return number[0] if number else None


# What announces a choice, and what may stand between this and the letter.
ANNOUNCED = re.compile(r"""
    (?<![a-zA-Z0-9])(?:answer|option|choice)(?![a-zA-Z0-9])[*_]{0,2}\s{0,9}(?:\bis\b|[:=：])
    | <answer> | \\f?box(?:ed)?\s{0,9}\{""", re.VERBOSE | re.IGNORECASE)
BETWEEN = re.compile(r"""(?:
    [\s:*_$(\[{}"'`“‘（：] | (?-i:<[a-z/]{1,9}>) | < | \\[(\[] | \\(?:text(?:bf)?|mathrm|mathbf|boxed|fbox)(?![a-z])
    | \b(?:therefore|thus|hence|clearly|definitely|probably|most\ likely|indeed|letter|option|choice|answer)\b,?
    ){0,30}""", re.VERBOSE | re.IGNORECASE)
# Words after an A that is no article: "A because", not "A large force".
AFTER_A = set("because since as which for due and or with given that so not but is by while whereas when if then "
              "rather instead from where in here although though according only too on at".split())
# A hedge: another letter is named after it as well, or before it; "B, and A is wrong" is none.
HEDGED = re.compile(r"""
    [\s*_$)\]}"'`.]{0,30}                                    # what closes the letter, and the word or sign between
    (?: , | ; | / | \| | \+ | \\?& | \(?\bor\b | \b(?:and|as\ well\ as|vs)\b | \\text\{\s?(?:or|and)\s?\} )
    [\s,*_$(\[{"'`]{0,30}
    (?: (?:or|and|possibly|perhaps|maybe|else|even|option|choice|the\ answer\ is)\b[\s,*_$(\[{"'`]{0,9}
      | \\(?:text|boxed|fbox)\{ ){0,4}
    (?: [A-E](?![A-Za-z0-9'])                                # the other letter; a small one is perhaps a word
      | [b-e](?![A-Za-z0-9'.]) | [b-e](?=\.(?:\s|$)) | a(?=[\s)*_$}]{0,9}\.?$) )
    (?! (?:[\s),]{1,3}(?:and\s|or\s)?\(?[A-E])*[\s)*_]{0,9}  # which something else is said about: C and D are wrong
        (?: \s(?:is|are|was|were|can|does|do|has|have|would|being)\b | = ) )""", re.VERBOSE)
BESIDE = re.compile(r"""
    \\f?box(?:ed)?\s?\{[^{}]{0,9}\{?[\s(]?[A-E][\s)}]{0,4}\}[\s$]{0,4}
      (?:,|;|/|or|and|\\text\{\s?(?:or|and)\s?\})[\s$]{0,4}$
    | \b[A-E][\s)*_$}]{0,6}\bor\s(?:[a-z]{1,9}\s){0,3}$""", re.VERBOSE)


def stated_choice(response: str) -> str | None:
    """The letter A to D that the response states last; None for none, a hedge ("A or B") or no option (E)."""
    if alone := re.fullmatch(r"[\s*_(\[$]{0,9}([A-D])[\s*_)\].:$]{0,9}", response):
        return alone[1]
    response = response.rstrip()[-20 * LONGEST :]
    for mark in list(ANNOUNCED.finditer(response))[:-1000:-1]:  # from the last one on
        boxed = mark[0].endswith("{")
        if boxed and not last_box(response[mark.start() : mark.end() + 400]):
            return None  # empty or cut off
        rest = response[mark.end() : mark.end() + 400]
        before = BETWEEN.match(rest)[0]
        rest = rest[len(before) :]
        letter, after = rest[:1], rest[1:]
        if re.match(r"(?:either|both|neither)\b", rest, re.IGNORECASE):
            return None
        if not (letter.isascii() and letter.isalpha()) or re.match(r"[A-Za-z0-9]|'[a-z]|\.[A-Za-z]", after):
            continue  # a word
        word = re.match(r"[ \t]+([a-z]+)", after)
        maybe_article = letter == "a" or letter == "A" and mark[0][-1] in ":=："
        if maybe_article and word and not before.strip(" \t\n:*_") and word[1] not in AFTER_A:
            continue
        closed = re.match(r"[*_$)\]}\"'`]|[.,;:]?(?:\s*$|\n)|[.,;:]\s", after)
        if letter.islower() and letter not in "bcd" and not boxed and not closed:
            continue
        hedged = HEDGED.match(after) or BESIDE.search(response[max(0, mark.start() - 60) : mark.start()])
        return letter.upper() if letter.upper() in "ABCD" and not hedged else None
    return None


# ---- Tokens: text → tokens, one spelling for each thing --------------------------------------------------------------

SYMBOLS = {**{s[0]: s[1:] + " " for s in (
    r"×\times ·\cdot ⋅\cdot ÷\div √\sqrt π\pi θ\theta ∞\infty °^\circ ≤\le ≥\ge ≠\ne "
    r"±\pm ∓\mp ∪\cup ∈\in ∅\emptyset ½\frac12 ⅓\frac13 ⅔\frac23 ¼\frac14 ¾\frac34").split()},
           **{chr(i): chr(i - 0xFEE0) for i in range(0xFF01, 0xFF5F)},  # full width
           **dict.fromkeys("−–—‐‑‒―－﹣", "-"), **dict.fromkeys("\u200b\u2060\ufeff", ""),
           **dict.fromkeys("\u00a0\u2009\u202f", " "), "€": "\\text{euro}", "¢": "\\text{cent}", "…": "\\dots "}
PLAIN = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉", "0123456789" * 2)
RENAMED = dict(pair.split() for pair in (
    r"\dfrac \frac,\tfrac \frac,\cfrac \frac,\nicefrac \frac,\sfrac \frac,\times *,\cdot *,\ast *,\div /,\leq \le,"
    r"\leqslant \le,\geq \ge,\geqslant \ge,\lt <,\gt >,\neq \ne,\varnothing \emptyset,\lbrace \{,\rbrace \},\lvert |,"
    r"\rvert |,\vert |,\lbrack [,\rbrack ],\dbinom \binom,\tbinom \binom,\ldots \dots,\cdots \dots,\infinity \infty,"
    r'\varphi \phi,\bigcup \cup,\colon :,\% "percent,% "percent,\$ "dollar,\degree "degree').split(","))
UNITS = dict(pair.split() for pair in (
    "centimeter cm,centimetre cm,millimeter mm,meter m,metre m,kilometer km,kilometre km,foot ft,feet ft,inch in,"
    "inche in,yard yd,mile mi,gram g,kilogram kg,pound lb,ounce oz,hour hr,minute min,second s,liter l,"
    "litre l,gm g,gallon gal,h hr,s s,sec s,year yr,USD dollar,mL ml,L l,mph mi/hr,kph km/hr").split(","))
SHORT_UNITS = set("cm mm km ft in yd kg mg lb lbs oz mph hr hrs ml mL kW MW mW Mg sec min gal am pm sq cu".split())
SCALES = {word: scale for scale, names in zip(
    "100 10^3 10^6 10^9 10^12 10^15 12 20 144 1/2 1/3 1/4 1/5 1/6 1/7 1/8 1/9 1/10 1/100 1/1000".split(),
    "hundred thousand million billion trillion quadrillion dozen score gross half,halve third quarter,fourth fifth "
    "sixth seventh eighth ninth tenth hundredth thousandth".split()) for word in names.split(",")}
CHANGING = re.compile(r"""(?i)"(?:squared|cubed|(?:tri|\w+u)pled|doubled|halved|factorial|negative|minus|plus|below
    |above|under|over|less|fewer|more|zero|inverse|reciprocal|repeating|recurring|remainder|off|twice|not|of|to|by|mod
    |couple|myriad|\w*(?:teen|tie|lf|ion)ths?|\w+illions?)""", re.VERBOSE)  # words after a number that are no units
NAMES = set("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
            "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega infty ell emptyset".split())
FUNCTIONS = set("sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln exp "
                "lcm gcd det max min".split())
SPELLED = FUNCTIONS - {"min", "max", "sec"}  # without a backslash, too; min and sec are units
ACCENTS = set("overline bar vec hat mathbb mathcal overrightarrow".split())
SYMBOLIC = NAMES | ACCENTS
ALIASES = {"or": ",", "and": ",", **dict.fromkeys(("degree", "degrees", "deg"), '"degree')}

TOKEN = re.compile(r"""
    (?P<skip> \s+ | [$~] | \\(?:left|right)\s*\. | \\[,;:!> ()\[\]]                            # no meaning
      | \\(?:text)?color\s*\{[a-zA-Z]*\} | \\[hv]?phantom\s*(?:\{[^{}]*\}|[^\\{]) | \\[hm]space\*?\s*\{[^{}]*\} | \\\Z
      | \\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|q?quad|(?:neg)?(?:thin|med|thick)space|enspace
          |space|large|bf|mathbf|boldsymbol|bm|underline|mathit|mathsf)(?![a-zA-Z]) )
    | \\(?P<style>text(?:bf|it|rm|sf|normal)?|[mh]box|mathrm|operatorname\*?)\s*\{(?P<words>[^{}]*)\}
    | (?P<environment> \\(?:begin|end)\s*\{[a-zA-Z]*\*?\} )
    | (?P<word> (?<![^,;=$\s])(?<![-+*/]\s)              # a date, a score
        [0-9]+(?:(?:-[0-9]+)+|(?:\s-\s[0-9]+)*\s-\s0[0-9]|(?:/[0-9]+){2,})(?=\s*(?:[,;$.]|\Z))
      | (?<=[\w)}$]\s)(?:to|by|of|is|in|on|at|as|vs|per)(?=\s+[\w(\\$]) )                       # 5 to 1, 2 by 3
    | (?P<based> (?<![0-9A-Za-z])(?:[0-9A-F]+|[0-9a-f]{2,9}(?=_\{1[1-6]))_(?:\{[0-9]{1,2}\}|[0-9](?![0-9])) )
    | [0-9]*\.[0-9]*\\(?:overline|bar)\s*(?:\{[0-9]+\}|[0-9]) | [0-9]+(?:\.[0-9]+)? | \.[0-9]+  # numbers
    | (?P<letters> [a-zA-Z]+ ) | \\[a-zA-Z]+ | \\. | .""", re.VERBOSE | re.DOTALL)

REWRITTEN = [(re.compile(pattern), new) for pattern, new in [
    (r"^\s*(\*\*?|`)(.*)\1\s*\Z|^\s*=(?=\s*[^=\s])", lambda m: m[2] or ""),            # **5**, =5
    (r"\*\*", "^"), (r"(?<![\w.])([0-9.]{1,40})[eE]([+-]?[0-9]{1,9})(?!\w)", r"\1*10^{\2}"),  # 10**3, 1e3
    (r"\{([^{}]*)\\over(?![a-z])", r"\\frac{\1}{"), (r"\{([^{}]*)\\choose(?![a-z])", r"\\binom{\1}{"),
    (r"^((?:[^a-zA-Z+=]|\\d?frac|\\sqrt)*[0-9})])(?:\s|\\[,; ]|~)+((?:[msLgh]|km)(?:/(?:h|s|min))?)(?![a-zA-Z/])"
     r"(?=\s*(?:\^\{?[0-9]\}?)?[\s$.]*\Z)", r"\1\\text{\2}"),                                # 5 m, 9.8 m/s^2
    (r">=", r"\\ge "), (r"<=", r"\\le "), (r"(?<=\bsq)\.|(?<=\bcu)\.", ""), (r"(?<!\\)\\[()\[\]]", " "),
    (r"(?:^|(?<=[=($]))\s*~(?=\s*[0-9.\\$])", r"\\approx "),                     # ~5 is not 5; 0.333... is 1/3
    (r"(?<![0-9.])([0-9]{0,20}\.[0-9]{0,20}?)([0-9]{1,12}?)\2{1,20}\s*\\[lc]?dots(?![a-z])", r"\1\\overline{\2}"),
    ("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda run: f"^{{{run[0].translate(PLAIN)}}}"),             # x¹² is x^{12}
    ("[₀₁₂₃₄₅₆₇₈₉]+", lambda run: f"_{{{run[0].translate(PLAIN)}}}"),
    (r"\\\\\s*\[[^\]]{0,9}\]", r"\\\\"),                                            # a row break with its height
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})", r"\\degree "),
    (r"(\\(?:text|mathrm)\s*\{[^{}0-9]*)\^\{?([0-9])\}?\}", r"\1}^\2"),             # \mathrm{cm^2}
    (r"(?:\\(?:text|mathrm)\s*\{|\()([0-9A-F]+)[})](?=\s*_)", r"\1"),               # \text{A5}_{11}, (43)_5
    (r"(?i)(?<=[0-9])((?:\s|\\ |~|\\text\s*\{)*)([ap])\.?m\b\.?", lambda m: f"{m[1]} {m[2].lower()}m"),  # 4:30 P.M.
    (r"(?<=[0-9])(?:\{,\}(?:\\!)?|,\\!|\\,)\s{0,3}(?=[0-9]{3}(?![0-9]))", ""), (r"(?<!\\)\\,", " "),  # 10{,}000 and \,
]]
BRACKETED = re.compile(r"[(\[]|\\\{|\\langle|\\begin")
THOUSANDS = [re.compile(rf"(?<![0-9.,^_])(?<![\^_]{{)[1-9][0-9]{{0,2}}(?:{comma}[0-9]{{3}})+(?!,?[0-9])")
             for comma in ", "]
MIXED = re.compile(r"(?<![0-9./^_}])([0-9]+)(?:\s|\\ )+([0-9]+)\s*/\s*([0-9]+)(?![0-9.])")


def tokens_of(text: str, thousands: bool = True) -> list[str]:
    """LaTeX or plain mathematics as tokens; a word or unit is a token that begins with a quote."""
    text = "".join(SYMBOLS.get(c, c) for c in text.replace("...", "…"))
    if len(text) > LONGEST:  # now that ½ is \frac12
        return ['"' + text]
    end = len(text.rstrip(".,;$ \n"))
    text = text[: end + text[:end].endswith("\\")]  # but for \, and \$
    text = reduce(lambda text, rule: rule[0].sub(rule[1], text), REWRITTEN, text)
    left, equals, right = text.rpartition("=")
    for pattern in THOUSANDS if thousands and not BRACKETED.search(right) else ():  # in brackets a comma separates
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
    token, letters, style = match[0], match["letters"], match["style"]
    word = letters or (match["words"] or "").replace("~", " ").strip()
    if match["skip"] or style and not word:
        return []
    if match["word"] or match["environment"]:
        return ['"' * bool(match["word"]) + "".join(token.split())]
    if match["based"]:
        digits, base = re.sub("[{}]", "", token).split("_")
        if digits.isalpha():
            return [digits.upper() if base == "16" else digits, "_", base]  # the names A_1 and AB_12
        try:
            return [str(int(digits, int(base) or 1))]  # 1011_2 is 11
        except ValueError:  # 129_2
            return ['"' + token]
    if not word:
        return ["\\" + token] if token.isdigit() and not token.isascii() else [RENAMED.get(token, token)]  # no digit: ①
    if word in SPELLED or letters in ("sqrt", "pi", "theta", "infinity"):
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


def as_string(tokens: list[str]) -> str:
    """The normalised string: no blanks but between two numbers, (A) as A."""
    text = "".join(f" {t}" if i and t[0].isdigit() and tokens[i - 1][0].isdigit() else t for i, t in enumerate(tokens))
    text = re.sub(r"([_^])\{(.)\}(?![0-9])", r"\1\2", text)
    return re.sub(r"^(\"?)\((\"?[a-zA-Z])\)$", r"\1\2", text)


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


# ---- Parts: tokens → (kind, its parts ...) ---------------------------------------------------------------------------


class Undecided(Exception):
    """The text is outside the grammar, or too large: it is compared as a string."""


class NoRoot(Exception):
    """This field has no root of a number of which the answer has one."""


def need(condition: object) -> None:
    if not condition:
        raise Undecided

# A number that is no Fraction, in one field: modulo p; modulo q = (p - 1)/2, for use as an exponent; the names of which
# it is a product (each one's power is odd, so that with them it counts as positive), or None if it may be negative.
# A name is a random number (a square), a function a random function of its argument's value.
Residue = namedtuple("Residue", "p q names")


class Gauss(namedtuple("Gauss", "real imag")):
    """real + imag·i modulo p, for -1 is no square in these fields; % p makes it a plain int where it is one."""

    def __add__(self, other):
        return Gauss(self.real + other.real, self.imag + other.imag)

    def __mul__(self, other):
        return Gauss(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)

    __radd__, __rmul__ = __add__, __mul__

    def __mod__(self, p):
        return Gauss(self.real % p, self.imag % p) if self.imag % p else self.real % p

    def __pow__(self, n, p):
        if n < 0:
            return pow(Gauss(self.real, -self.imag) * pow(self.norm(), -1, p) % p, -n, p)
        return (pow(self * self % p, n // 2, p) if n > 1 else 1) * (self if n % 2 else 1) % p

    def norm(self):
        return self.real**2 + self.imag**2


OPEN, CLOSE = ("(", "[", "{", "\\{", "\\langle"), (")", "]", "}", "\\}", "\\rangle")
ORDERS = {"<": "<", "\\le": "\\le", "\\ne": "\\ne", ">": "<", "\\ge": "\\le"}  # 3 > x is x < 3
NAMED = re.compile(r"""                                  # what may stand before the = of an answer:
    [a-zA-Z]{1,3}'?(?:_\{?[\w\\]{1,9}\}?)?(?:\([a-zA-Z0-9](?:,[a-zA-Z0-9])*\))?      # x, AB, x_1, f(x), f(3)
    | \((?:[a-zA-Z],)+[a-zA-Z]\) | \{?[a-zA-Z]\}?        # (x,y)
    | \\[a-zA-Z]+(?:\{?[a-zA-Z]{1,3}\}?)? | \"[^0-9]*    # \theta, \overline{AB}, words""", re.VERBOSE)
SQUARES = {k: Fraction(n, 4) for n, at in enumerate([[0], [2, 10], [3, 9], [4, 8], [6]]) for k in at}  # of sin(k·π/12)
RATIOS = {"\\tan": ("\\sin", "\\cos"), "\\cot": ("\\cos", "\\sin"), "\\sec": ("", "\\cos"), "\\csc": ("", "\\sin")}
ARCS = {"\\arcsin": ("\\sin", range(-6, 7)), "\\arccos": ("\\cos", range(13)), "\\arctan": ("\\tan", range(-5, 6))}
SEVERAL = {"\\gcd": lambda n: math.gcd(*n), "\\lcm": lambda n: math.lcm(*n), "\\max": max, "\\min": min}
FREE = re.compile(r"[a-z]=[a-z]\([a-z](?:,[a-z])*\)")  # f(x) = ... may be called y = ...


def opened(token: str) -> int:
    """1 for what opens a bracket or a matrix, -1 for what closes one, 0 for any other token."""
    return (token in OPEN or token.startswith("\\begin")) - (token in CLOSE or token.startswith("\\end"))


class Reader:
    """Reads tokens as mathematics over the field of p elements, and compares what it has read."""

    def __init__(self, p: int, work: int = 0):
        self.p, self.q, self.work, self.depth = p, (p - 1) // 2, work, 0

    def spend(self, steps: int) -> None:
        self.work += steps
        need(self.work <= 20_000)  # some 20 ms

    def split(self, tokens: list[str], separators: set[str]) -> list[list[str]]:
        """The runs of tokens between separators that stand in no bracket."""
        self.spend(len(tokens) // 8 + 1)
        depths = list(accumulate(map(opened, tokens)))
        need(not tokens or depths[-1] == 0 and min(depths) >= 0)
        at = [i for i, token in enumerate(tokens) if token in separators and depths[i] == 0]
        return [tokens[i + 1 : j] for i, j in zip([-1, *at], [*at, len(tokens)])]

    def read(self, tokens: list[str]) -> tuple:
        """("number", value, unit, tokens), ("list" | "set" | "union", items), ("tuple", brackets, items),
        ("matrix", rows), ("order", signs, sides), ("named", name, value), ("equation", difference, "", tokens)
        or ("text", text)."""
        self.depth += 1
        need(tokens and self.depth <= 30)
        parts = [part for part in self.split(tokens, {",", ";"}) if part]
        value = self.read_one(parts[0]) if len(parts) == 1 else ("list", self.read_items(parts))
        self.depth -= 1
        return value

    def read_items(self, parts):
        """The items of a list; one with a \\pm is two."""
        return [item for value in map(self.read, parts) for item in (value[1] if value[0] == "list" else [value])]

    def read_one(self, tokens):
        """What has no comma but in brackets."""
        if len(sets := self.split(tokens, {"\\cup"})) > 1:
            return "union", [self.read(part) for part in sets]
        if len(sides := self.split(tokens, {"=", "\\in"})) > 1:
            return self.read_equation(sides, tokens)
        if signs := [token for token in tokens if token in ORDERS]:
            sides = [self.read(side) for side in self.split(tokens, set(ORDERS))]
            way = -1 if signs[0] in (">", "\\ge") else 1
            need(len(signs) == 1 or "\\ne" not in signs and len({sign in (">", "\\ge") for sign in signs}) == 1)
            return "order", [ORDERS[sign] for sign in signs][::way], sides[::way]
        if opened(tokens[0]) == 1 and 0 not in list(accumulate(map(opened, tokens)))[:-1]:  # closed by the last token
            return self.read_enclosed(tokens[0], tokens[1:-1], tokens[-1])
        if matrix := next((i for i, token in enumerate(tokens) if token.startswith("\\begin")), 0):
            return self.read_multiple(tokens[:matrix], tokens[matrix:])
        if {"\\pm", "\\mp"} & set(tokens):
            two = [self.read([{"\\pm": up, "\\mp": down}.get(token, token) for token in tokens])
                   for up, down in ("+-", "-+")]
            return two[0] if self.same(*two) else ("list", two)
        if all(token[0] == '"' for token in tokens):
            return "text", "".join(tokens).replace('"', "").lower()
        number, unit = without_unit(tokens)
        need("\\infty" not in number or [t for t in number if t not in "+-"] == ["\\infty"])  # no \infty - \infty
        self.tokens = number = [name for t in number for name in (t if t.isalpha() else [t])]
        self.at, self.bars, self.inside = 0, False, False  # bars: whether a | closes the |a| that is being read
        value = self.sum()
        need(self.at == len(self.tokens))
        return "number", value, unit, tokens if len(tokens) == 1 else self.tokens  # AB is a name: not BA

    def read_enclosed(self, first, inner, last):
        """A matrix, a set, a tuple or interval, or what stands in brackets alone."""
        if first == "\\begin{vmatrix}":
            return self.read(["\\det", "\\begin{matrix}", *inner, "\\end{matrix}"])
        if first.startswith("\\begin"):
            return self.read_matrix(first, inner)
        parts = self.split(inner, {",", ";"})
        if first == "\\{":
            return ("set", self.read_items([part for part in parts if part])) if inner else self.read(["\\emptyset"])
        if len(parts) > 1 and first != "{":
            need(sum(token in ("\\pm", "\\mp") for token in inner) < 2)  # does one sign follow the other?
            return "tuple", first + last, [self.read(part) for part in parts]
        return self.read(inner)

    def read_equation(self, sides, tokens):
        """x = 5 is 5 with a name, 2 + 3 = 5 is 5, and of any other equation what one side exceeds the other by."""
        named = [bool(NAMED.fullmatch("".join(side))) for side in sides]
        named[-1] &= not all(named)
        names = ["".join(side) for side, is_name in zip(sides, named) if is_name]
        values = [self.read(side) for side, is_name in zip(sides, named) if not is_name]
        if all(self.same(value, values[-1]) for value in values):
            return ("named", names[0], values[-1]) if names else values[-1]
        need(len(sides) == 2 and all(value[0] == "number" for value in values))
        need(any(t.isalpha() or t[1:] in NAMES - {"pi"} for t in tokens))  # 1 = 2
        return "equation", self.minus(values[0][1], values[1][1]), "", tokens

    def read_matrix(self, begin, inner):
        need(re.fullmatch(r"\\begin\{(?:[pb]?(?:small)?matrix\*?|array)\}", begin))
        if begin == "\\begin{array}" and inner[:1] == ["{"] and "}" in inner:  # the columns' alignment
            inner = inner[inner.index("}") + 1 :]
        rows = [self.split(row, {"&"}) for row in self.split(inner, {"\\\\"}) if row]
        return "matrix", [[self.read(cell) for cell in row] for row in rows]

    def read_multiple(self, factor, matrix):
        """A number times a matrix, or its determinant."""
        kind, rows, *_ = self.read(matrix)
        need(kind == "matrix" and all(cell[0] == "number" for row in rows for cell in row))
        if factor == ["\\det"]:
            need(len(rows) < 6 and all(len(row) == len(rows) for row in rows))
            return "number", self.determinant([[cell[1] for cell in row] for row in rows]), "", factor + matrix
        _, by, *_ = ("number", Fraction(-1)) if factor == ["-"] else self.read(factor)
        return "matrix", [[("number", self.times(by, cell[1]), "", [*factor, *cell[3]]) for cell in row]
                          for row in rows]

    def determinant(self, rows):
        """By the first row."""
        total = Fraction(0) if rows else Fraction(1)
        for i, value in enumerate(rows[0] if rows else ()):
            minor = self.times(Fraction((-1) ** i), self.determinant([row[:i] + row[i + 1 :] for row in rows[1:]]))
            total = self.plus(total, self.times(value, minor))
        return total

    # ---- Values: tokens → a number in one field ----------------------------------------------------------------------
    def peek(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted=None):
        token = self.peek()
        need(token and wanted in (None, token))
        self.at += 1
        return token

    def sign(self):
        return Fraction(-1 if self.peek() == "-" and self.take() else 1)

    def sum(self):
        total = self.product() if self.peek() not in ("+", "-") else Fraction(0)
        while self.peek() in ("+", "-"):
            total = (self.minus if self.take() == "-" else self.plus)(total, self.product())
        return total

    def product(self, functions=True):
        """Factors with signs or side by side. The argument of a function ends before the next: sin 2x cos x."""
        value, kind = self.factor()
        while token := self.peek():
            before = kind
            if token in ("*", "/"):
                if not functions and "".join(self.tokens[self.at + 1 : self.at + 2])[1:] in FUNCTIONS:
                    break  # sin x / cos x
                self.take()
                sign = self.sign()
                factor, kind = self.factor()
                factor = self.times(sign, self.power(factor, Fraction(-1 if token == "/" else 1)))
            elif (token[0].isalnum() or token in ("(", "[", "{", "\\frac", "\\sqrt", "\\binom")
                  or token[1:] in SYMBOLIC or token == "|" and not self.bars or functions and token[1:] in FUNCTIONS):
                factor, kind = self.factor()
                need(not (before and kind) or before == kind == "power")  # two numbers want a sign between them
            else:
                break
            value = self.times(value, factor)
        return value

    def factor(self):
        """An atom with its powers and factorials; and "number", "power" of a number, or "" for anything else."""
        start = self.at
        value = self.atom()
        digits = all(t == "\\frac" or t[0] in "{}.0123456789" for t in self.tokens[start : self.at][:9])
        kind = digits * ("power" if self.peek() == "^" else "number")
        while self.peek() in ("^", "!", '"degree'):
            if (token := self.take()) == "!":
                step = 2 if self.peek() == "!" and self.take() else 1  # 5!! is 5·3·1
                need(self.peek() != "!")
                value = Fraction(math.prod(range(self.whole(value, 3000), 0, -step)))
            elif token != "^" and self.inside:
                value = self.degrees(value)
            elif token == "^":
                value = self.power(value, self.exponent())
        return value, kind

    def exponent(self):
        tower = []  # 2^3^4 is 2^(3^4)
        while not tower or self.peek() == "^" and self.take():
            tower.append(self.times(self.sign(), self.simple()))
        return reduce(lambda value, base: self.power(base, value), reversed(tower))

    def simple(self):
        """An atom, but of x^2\\frac12 only the 2."""
        return literal(self.take()) if self.peek()[:1].isdigit() else self.atom()

    def argument(self):
        """Of \\frac: a group, one token, or of a run of digits the first, as TeX reads \\frac12."""
        token = self.peek()
        if len(token) > 1 and token.isdigit():
            self.spend(len(self.tokens))
            self.tokens = [*self.tokens[: self.at], token[0], token[1:], *self.tokens[self.at + 1 :]]
        return self.simple()

    def whole(self, value, most):
        need(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= most)
        self.spend(int(value))
        return int(value)

    def atom(self):
        self.depth += 1
        need(self.depth <= 60)
        value = self.read_atom(self.take())
        self.depth -= 1
        return value

    def read_atom(self, token):
        """A number, a bracket, a command with its arguments, or a name, of which this token is the first."""
        if token[0].isdigit() or token[0] == "." and len(token) > 1:
            return self.mixed(literal(token))
        if token in ("(", "[", "{"):
            bars, self.bars = self.bars, False
            value = self.sum()
            self.take(CLOSE[OPEN.index(token)])
            self.bars = bars
            return value
        if token == "\\frac":
            above = self.argument()
            return self.times(above, self.power(self.argument(), Fraction(-1)))
        if token == "\\sqrt":
            degree = self.atom() if self.peek() == "[" else Fraction(2)
            return self.power(self.simple(), self.power(degree, Fraction(-1)))
        if token == "\\binom":
            return Fraction(math.comb(self.whole(self.argument(), 1000), self.whole(self.argument(), 1000)))
        if token == "|":
            return self.absolute()
        if token[1:] in FUNCTIONS:
            return self.function(token)
        start = self.at
        if token[1:] in ACCENTS:
            self.atom()
            need(not all(t.isdigit() or t in "{}" for t in self.tokens[start : self.at]))  # a period is no number
            return self.random(token, self.tokens[start : self.at])
        need(token.isalpha() or token[1:] in NAMES)
        if token in ("f", "g") and self.peek() == "(":  # f(5) is no product
            return self.random(token, [self.residues(value).p for value in self.arguments()])
        if self.peek() == "_":
            self.take()
            while self.take() != "}" and self.tokens[start + 2 : start + 3] == ["{"]:
                pass
        subscript = "".join(self.tokens[start : self.at]).replace("{", "").replace("}", "")
        return self.name(token + subscript)

    def mixed(self, whole):
        """2\\frac34 is 2 + 3/4: a whole number right before a proper fraction of digits."""
        rest = "".join(self.tokens[self.at : self.at + 7])
        digits = re.match(r"\\frac(?:\{([0-9]{1,9})\}|([0-9]))(?:\{([0-9]{1,9})\}|([0-9])(?![0-9]))", rest)
        proper = digits and whole.denominator == 1 and 0 < int(digits[1] or digits[2]) < int(digits[3] or digits[4])
        return whole + self.atom() if proper else whole

    def absolute(self):
        """|a|: of a number, or of an expression without names that counts as positive, itself; else unknown."""
        self.bars = True
        value = self.sum()
        self.bars = False
        self.take("|")
        if isinstance(value, Residue) and isinstance(value.p, Gauss):
            square = Residue(value.p.norm() % self.p, self.random("||", value.p).q, frozenset())
            return self.power(square, Fraction(1, 2))
        if isinstance(value, Fraction) or value.names == frozenset():
            return abs(value) if isinstance(value, Fraction) else value
        return self.random("||", min(value.p, self.p - value.p))

    def function(self, name):
        """sin x, \\log_2 8, \\tan^2(x): a random function of its argument, and of its base."""
        base, power = self.residues(self.name("e") if name == "\\ln" else Fraction(10)).p, Fraction(1)
        while token := self.peek() in ("_", "^") and self.take():
            base = self.residues(self.argument()).p if token == "_" else base
            power = self.exponent() if token == "^" else power
        if power == -1:
            name, power = name.replace("\\", "\\arc"), Fraction(1)  # \sin^{-1} x is \arcsin x
        if name in SEVERAL:
            return self.of_several(name)
        inside, self.inside = self.inside, True
        value = self.atom() if self.peek() in ("(", "{", "[") else self.product(functions=False)
        if self.peek() == '"degree' and self.take():
            value = self.degrees(value)
        self.inside = inside
        if name == "\\exp":
            return self.power(self.name("e"), value)
        return self.power(self.value(name, base, self.residues(value).p), power)

    def arguments(self):
        """The values in (12, 18) or \\{3, 5\\}."""
        need(self.peek() in ("(", "\\{", "{"))
        close, values = CLOSE[OPEN.index(self.take())], [self.sum()]
        while self.peek() == "," and self.take():
            values.append(self.sum())
        self.take(close)
        return values

    def of_several(self, name):
        """\\gcd(12, 18), \\max\\{3, 5\\}: exact of rationals, else random, in any order."""
        values = self.arguments()
        if not all(isinstance(value, Fraction) for value in values):
            return self.random(name, sorted(repr(self.residues(value).p) for value in values))
        if name in ("\\gcd", "\\lcm"):
            need(all(value.denominator == 1 for value in values))
            values = [value.numerator for value in values]
        return Fraction(SEVERAL[name](values))

    def value(self, name, base, x):
        """A function at x: exact for \\log_2 8 and \\sin\\frac{\\pi}{6}, else random. \\tan and its kind are ratios."""
        if not isinstance(x, int):
            return self.random(name, base, x)
        if name in RATIOS:
            above, below = (self.value(part, base, x) if part else Fraction(1) for part in RATIOS[name])
            return self.times(above, self.power(below, Fraction(-1)))
        if name in ("\\log", "\\ln"):
            self.spend(150)
            need(isinstance(base, int) and base > 1)
            powers = {pow(base, n, self.p): n for n in range(-20, 21)}
            for d in range(1, 7) if pow(base, self.q, self.p) == pow(x, self.q, self.p) == 1 else ():  # both above 0
                if (y := pow(x, d, self.p)) in powers:
                    return Fraction(powers[y], d)
            return self.random("\\log", base, x)
        if name in ARCS:
            function, angles = ARCS[name]
            for angle in (self.times(Fraction(k, 12), self.name("\\pi")) for k in angles if k % 12 in SQUARES):
                if self.residues(self.value(function, base, angle.p)).p == x:
                    return angle
        k = 12 * x * pow(self.name("\\pi").p, -1, self.p) % self.p  # x is k·π/12
        k = min(k, k - self.p, key=abs) + 6 * (name == "\\cos")
        if name not in ("\\sin", "\\cos") or k % 12 not in SQUARES or abs(k) > 10**6:
            return self.random(name, base, x)
        return self.times(Fraction((-1) ** (k // 12)), self.power(SQUARES[k % 12], Fraction(1, 2)))

    def degrees(self, value):
        return self.times(self.times(value, Fraction(1, 180)), self.name("\\pi"))

    def residues(self, value):
        if isinstance(value, Residue):
            return value
        need(isinstance(value, Fraction) and bits(value) <= 280)  # so that no number but 0 vanishes in the field
        n, d = value.numerator, value.denominator
        p, q = (n * pow(d, -1, modulus) % modulus for modulus in (self.p, self.q))
        return Residue(p, q, frozenset() if value > 0 else None)

    def combine(self, operation, a, b):
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            value = operation(a, b)
            self.spend(1 + (bits(value) // 1800) ** 2)
            return value
        self.spend(2)
        a, b = self.residues(a), self.residues(b)
        known = operation is operator.mul and None not in (a.names, b.names) and not a.names & b.names  # x·x is |x|²
        return Residue(operation(a.p, b.p) % self.p, operation(a.q, b.q) % self.q, a.names | b.names if known else None)
    plus, times = partialmethod(combine, operator.add), partialmethod(combine, operator.mul)

    def minus(self, a, b):
        return self.plus(a, self.times(Fraction(-1), b))

    def name(self, name):
        value = self.random("name", name, names=frozenset([name]) - {"\\pi"})
        return Residue(Gauss(0, 1), value.q, None) if name == "i" else value

    def random(self, *key, names=None):
        """A number that stands for a name or a function of what the key says; a square if it counts as positive."""
        self.spend(10)
        p, q = (int(hashlib.sha512(repr((n, key)).encode()).hexdigest(), 16) % n for n in (self.p, self.q))
        return Residue(p if names is None else p * p % self.p, q, names)

    def power(self, base, exponent):
        self.spend(10)
        if not isinstance(exponent, Fraction):  # 2^x: known of a square, whose powers repeat after q
            base = self.residues(base)
            self.spend(90)
            if base.names is not None and pow(base.p, self.q, self.p) == 1:
                return Residue(pow(base.p, exponent.q, self.p), self.random("^", base.p, exponent.q).q, base.names)
            return self.random("^", base.p, exponent.p)
        n, d = exponent.numerator, exponent.denominator
        need((base != 0 or n > 0) and abs(n) <= 10**6 and d <= 1000)
        if base == 0:
            return base
        if d > 1:
            return self.root(base, exponent)
        if isinstance(base, Fraction) and abs(n) * bits(base) < 20_000:
            return base**n
        base = self.residues(base)
        need(n > 0 or base.p and base.q)  # no division by zero
        names = None if base.names and n % 2 == 0 else base.names
        return Residue(pow(base.p, n, self.p), pow(base.q, n, self.q), names)

    def root(self, base, exponent):
        """base^(n/d) for d > 1: exact if it is rational; of a negative base if d is odd, or 2 (by way of i)."""
        n, d = exponent.numerator, exponent.denominator
        if isinstance(base, Fraction):
            if (exact := exact_root(base, d)) is not None:
                return self.power(exact, Fraction(n))
            if base < 0:
                need(d == 2 or d % 2)
                sign = Fraction(-1) if d % 2 else self.name("i")
                return self.times(self.power(sign, Fraction(n)), self.power(-base, exponent))
        base = self.residues(base)
        if base.names is None:  # of a sum: its sign is not known
            return self.random("root", base.p, exponent)
        self.spend(100)
        if pow(base.p, self.q, self.p) != 1:
            raise NoRoot
        root = pow(base.p, n * pow(d, -1, self.q) % self.q, self.p)
        return Residue(root, self.random("root", base.q, exponent).q, base.names)

    # ---- Same: two read answers → whether they are equal -------------------------------------------------------------

    def same(self, a: tuple, b: tuple) -> bool:
        """Whether two answers, as read() returns them, are equal."""
        self.spend(10)
        match a, b:
            case ("named", name, x), ("named", other, y) if name == other or FREE.fullmatch(
                    "=".join(sorted((name, other), key=len))):
                return self.same(x, y)
            case (("named", *_), ("named" | "equation", *_)) | (("equation", *_), ("named", *_)):
                return self.same(self.as_equation(a), self.as_equation(b))
            case ((("number", _, "cent", _), ("number", _, "dollar", _)) | (("tuple", *_), ("order", *_))
                  | (("list", _), ("named", *_))):
                return self.same(b, a)
            case ("named", name, ("tuple", "()", x)), ("list", y) if name[0] == "(" and name.count(",") == len(x) - 1:
                return self.matched([("named", *pair) for pair in zip(name[1:-1].split(","), x)], y)
            case (("named", _, x), y) | (x, ("named", _, y)):
                return self.same(x, y)
            case (("set", x), ("set" | "list", y)) | (("list", x), ("set", y)):
                return all(any(self.same(p, q) for q in v) for u, v in ((x, y), (y, x)) for p in u)
            case ("number", _, _, [x]), ("number", _, _, [y]) if x.isalpha() and y.isalpha():
                return x == y
            case ("number", x, "dollar", _), ("number", y, "cent", _):
                return self.equals(self.times(x, Fraction(100)), y)
            case ("number", x, unit, _), ("number", y, other, _):
                return (not unit or not other or unit == other) and self.equals(x, y)
            case (("list", x), ("list", y)) | (("union", x), ("union", y)):
                return self.matched(x, y)
            case ("equation", x, *_), ("equation", y, *_):
                self.spend(500)
                x, y = self.residues(x).p, self.residues(y).p
                ratio = x * pow(y, -1, self.p) % self.p if x and y else 0  # a fraction: 2y = 4x + 2 is y = 2x + 1
                return x == y or isinstance(ratio, int) and any(
                    0 < min(n := ratio * d % self.p, self.p - n) < 1000 for d in range(1, 1000))
            case ("order", signs, sides), ("tuple", *_):
                return (interval := self.interval(signs, sides)) is not None and self.same(interval, b)
            case ("matrix", x), ("matrix", y):
                return len(x) == len(y) and all(self.all_same(p, q) for p, q in zip(x, y))
            case (("tuple", x, p), ("tuple", y, q)) | (("order", x, p), ("order", y, q)):
                return x == y and (self.all_same(p, q) or x == ["\\ne"] and self.all_same(p, q[::-1]))
        return a[0] == "text" and a == b

    def equals(self, x, y):
        exact = isinstance(x, Fraction) and isinstance(y, Fraction)
        return x == y if exact else self.residues(x).p == self.residues(y).p

    def interval(self, signs, sides):
        """x > 3 as (3, \\infty), 1 <= x < 2 as [1, 2); None if what is bounded is no letter."""
        at = [i for i, side in enumerate(sides) if side[0] == "number" and len(side[3]) == 1 and side[3][0].isalpha()]
        if len(at) != 1 or "\\ne" in signs or len(sides) == 3 and at != [1]:
            return None
        low = at == [0] and self.read(["-", "\\infty"])
        high = at == [len(sides) - 1] and self.read(["\\infty"])
        brackets = "[("[bool(low) or signs[0] == "<"] + "])"[bool(high) or signs[-1] == "<"]
        return "tuple", brackets, [low or sides[0], high or sides[-1]]

    def as_equation(self, value):
        """x = 5 as x - 5 = 0."""
        if value[0] == "equation":
            return value
        _, name, value = value
        need("(" not in name)  # f(2) is no product
        name = self.read([token for token in re.split(r"(\\[a-zA-Z]+|.)", name) if token])
        need(name[0] == value[0] == "number")
        return "equation", self.minus(name[1], value[1]), "", []

    def all_same(self, a, b):
        return len(a) == len(b) and all(map(self.same, a, b))

    def matched(self, a, b):
        """Whether the one list is the other in some order; x = 3, y = 4 is 3, 4 in this order alone."""
        named = [[x[1] for x in items if x[0] == "named"] for items in (a, b)]
        if not all(named) and max(len(set(names)) for names in named) > 1:
            return self.all_same(a, b)
        left = list(b)
        for x in a:
            i = next((i for i, y in enumerate(left) if self.same(x, y)), None)
            if i is None:
                return False
            del left[i]
        return not left


def bits(value: Fraction) -> int:
    return max(map(int.bit_length, value.as_integer_ratio()))


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


# p = 4·k·Π(primes below 200) - 1 with (p - 1)/2 a prime q, too: every product of small primes is a square, and has one
# square as its root of any degree, so that roots multiply as real ones do (√8 = 2√2); exponents count modulo q.
FIELDS = [4 * k * math.prod(n for n in range(2, 200) if all(n % d for d in range(2, n))) - 1
          for k in (351, 764, 835, 906, 1335, 1779, 1841, 2343, 2361, 2506, 2827, 4816)]


def same_value(left: list[str], right: list[str]) -> bool:
    """Whether two token lists are the same in two fields; a field without a root that is needed is passed over."""
    agreed = work = 0
    for p in FIELDS:
        reader = Reader(p, work)
        try:
            a, b = reader.read(left), reader.read(right)
            if {a[0], b[0]} == {"set", "number"}:  # {5} is 5 as the whole answer
                a, b = (v[1][0] if v[0] == "set" and len(v[1]) == 1 else v for v in (a, b))
            if not reader.same(a, b):
                return False
            agreed += 1
        except NoRoot:
            pass
        except Undecided:
            return False
        if agreed == 2:
            return True
        work = reader.work
    return False


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
    for thousands in (False, True) if "," in a + b else (True,):  # 1,234 may be 1, 234; as mathematics it is one number
        left, right = tokens_of(a, thousands), tokens_of(b, thousands)
        strings = as_string(left), as_string(right)
        if '"' in strings[0] + strings[1]:  # words: without regard to case, but for units
            strings = [re.sub(r'"(\w{4,}|(?<!.)\w+)?', lambda w: (w[1] or "").lower(), string) for string in strings]
        if strings[0] == strings[1]:
            return bool(strings[0])
    return len(left) + len(right) < 4000 and same_value(left, right)


def rational(text: str) -> Fraction | None:
    """The rational number that a text states, exactly; None where it states none."""
    tokens = tokens_of(text[:LONGEST])
    try:
        need(len(tokens) < 500 and len(text) <= LONGEST)
        value = Reader(FIELDS[0]).read(tokens)
    except (Undecided, NoRoot):
        return None
    value = value[2] if value[0] == "named" else value
    return value[1] if value[0] == "number" and isinstance(value[1], Fraction) else None


# ---- The command -----------------------------------------------------------------------------------------------------


def shown(value: tuple) -> str:
    """A read answer as plain text; an expression as its tokens."""
    match value:
        case kind, number, unit, tokens:
            tokens = [str(number)] if isinstance(number, Fraction) and kind == "number" else tokens
            return " ".join([*tokens, unit]).replace('"', "").strip()
        case "text", words:
            return words
        case "named", name, inner:
            return f"{name} = {shown(inner)}"
        case "order", signs, sides:
            return shown(sides[0]) + "".join(f" {sign} {shown(side)}" for sign, side in zip(signs, sides[1:]))
        case "matrix", rows:
            return "[" + "; ".join(", ".join(map(shown, row)) for row in rows) + "]"
        case "tuple", brackets, items:
            left, *_, right = re.findall(r"\\(?:[a-z]+|.)|.", brackets)
            return left + ", ".join(map(shown, items)) + right
        case kind, items:
            text = (" \\cup " if kind == "union" else ", ").join(map(shown, items))
            return f"{{{text}}}" if kind == "set" else text


def reading(text: str, kind: str) -> str:
    """How matches() reads an answer, in words."""
    if kind == "choice":
        return f"read as the letter {text.strip().upper()}"
    if kind == "gsm8k":
        number = rational(text.rpartition("####")[2])
        return "no number" if number is None else f"read as the number {number}"
    for p in FIELDS if len(text) <= LONGEST else ():
        try:
            value = Reader(p).read(tokens_of(text))
        except Undecided:
            break
        except NoRoot:
            continue
        kind = "expression" if value[0] == "number" and not isinstance(value[1], Fraction) else value[0]
        kind = {"tuple": "tuple or interval", "order": "inequality", "named": "named value"}.get(kind, kind)
        return f"read as the {kind} {shown(value)}"
    return "compared as a string"


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
