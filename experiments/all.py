"""Runs every experiment of this folder, and says which findings hold.

    python experiments/all.py --quick        four minutes on two cores: small runs, to see that every script works
    python experiments/all.py --plot-only    makes the pictures and README.md's tables again from the CSVs
    python experiments/all.py                the full settings; finished runs are reused
"""

import re

import alpha_vs_lr
import baselines
import calibrate
import curvature
import gpu
import grid
import gsm8k
import mlp
import rank_law
import smollm2

from eval_pass1 import Parser, plain_output

README = grid.HERE / "README.md"
SCRIPTS = [curvature, mlp, alpha_vs_lr, rank_law, baselines, gpu, smollm2, gsm8k]
QUICK = ["--steps", "12", "--batch-size", "4", "--val-problems", "20", "--out", "out/experiments/calibrate.csv"]


def block(name: str) -> str:
    """The text of one place of the README: NAME for a script's report, NAME.FUNCTION for another text of its rows."""
    name, _, function = name.partition(".")
    script = next(script for script in SCRIPTS if script.__name__ == name)
    rows = grid.read_rows(grid.HERE / f"{name}.csv")
    rows = grid.rows_of(grid.HERE / f"{name}.csv", script.cells(False, rows))
    return getattr(script, function)(rows) if function else grid.report(script, rows)


def filled(text: str) -> str:
    """The README with the text between <!-- from NAME --> and <!-- end --> made anew from the CSVs."""
    return re.sub(r"(<!-- from ([\w.]+) -->\n).*?(<!-- end -->)",
                  lambda match: f"{match[1]}{block(match[2])}\n{match[3]}", text, flags=re.DOTALL)


def main():
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs, into out/experiments")
    parser.add_argument("--plot-only", action="store_true", help="train nothing: make texts and pictures from the CSVs")
    args = parser.parse_args()
    found = []
    for script in SCRIPTS:
        print(f"\n{script.__name__}: {script.__doc__.splitlines()[0]}", flush=True)
        try:
            rows = grid.run(script, args.quick, args.plot_only)
        except FileNotFoundError as error:
            found.append((script.__name__, f"not run: {error}", ""))
            continue
        print(grid.report(script, rows, args.quick))
        found += [(script.__name__, verdict, claim) for claim, verdict in script.findings(rows)]
    if args.plot_only:
        README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        calibrate.main(QUICK if args.quick else [])
    print()
    for name, verdict, claim in found:
        print(f"{name:12} {verdict}: {claim}" if claim else f"{name:12} {verdict}")


if __name__ == "__main__":
    grid.stoppable(main)
