"""Make figures/ again, folder by folder: trace the runs that are missing, then make figures and tables from them.

python analyses/recipe.py RUNS [FOLDER ...] [--out DIR] [--gsm8k FILE] [--show]

Everything that is committed in figures/ was made by these commands, but for the runs in `EARLIER`. RUNS is the folder
for runs. A run that is complete there is used as it is, and one that was interrupted is continued. Without a FOLDER,
all folders are made; their runs took four hours on one thread. --show prints the commands and does nothing. On another
processor the last digits of measured numbers differ, and the third digit of how deep walks are, because entropies near
zero are then ordered otherwise. Tokens do not differ.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMOLLM2, GEMMA3 = "--model smollm2-135m-instruct", "--model gemma3-270m"
SAMPLE, GSM8K = "--dataset sample", "--dataset gsm8k --limit 64"
TASK = "--tasks sample"
VALLEY = "--strategy valley --window 10"
TEXTS = "--max-new-tokens 0 --no-chat-template"
QUESTIONS = "{runs}/qa.jsonl"
ANSWERS = f"{SAMPLE} --data-file {QUESTIONS} --no-chat-template --max-new-tokens 48 --stop-strings '\n' --batch-size 20"
TEMPERATURES = ("0.1", "0.4", "0.7", "1.0")
POLICIES = ("conflayers", "swift", "clasp", "knapspec", "every-other", "traced")
LENSES = {"logit": "", "linear": ".safetensors", "tuned": ".safetensors", "jacobian": ".pt"}
"""Kinds of lenses, and the endings of their files in RUNS/lenses, such as smollm2-linear.safetensors. docs/lenses.md
has the fits."""


def through(model: str, lens: str) -> str:
    """The option that reads a model through a lens."""
    return f" --lens {lens}:{{runs}}/lenses/{model}-{lens}{LENSES[lens]}" if LENSES[lens] else ""


RUNS = {
    "gsm8k-last": f"trace {SMOLLM2} {GSM8K} --max-new-tokens 256 --batch-size 16",
    "gsm8k-valley": f"trace {SMOLLM2} {GSM8K} --max-new-tokens 256 --batch-size 16 {VALLEY}",
    "sample-last": f"trace {SMOLLM2} {SAMPLE} --max-new-tokens 128 --batch-size 20",
    "sample-valley": f"trace {SMOLLM2} {SAMPLE} --max-new-tokens 128 --batch-size 20 {VALLEY}",
    "ablation-sample": f"ablate {SMOLLM2} {TASK} --batch-size 60 --max-new-tokens 128",
    **{
        f"ablation-sample-T{temperature}": f"ablate {SMOLLM2} {TASK} --arms last,valley --p 1 "
        f"--temperature {temperature} --batch-size 60 --max-new-tokens 128"
        for temperature in TEMPERATURES
    },
    "gemma3-sample-last": f"trace {GEMMA3} {SAMPLE} --max-new-tokens 128 --batch-size 20",
    "gemma3-sample-valley": f"trace {GEMMA3} {SAMPLE} --max-new-tokens 128 --batch-size 20 {VALLEY}",
    "smollm2-sample-texts": f"trace {SMOLLM2} {SAMPLE} {TEXTS} --batch-size 20",
    "gemma3-sample-texts": f"trace {GEMMA3} {SAMPLE} {TEXTS} --batch-size 20",
    "smollm2-gsm8k-texts": f"trace {SMOLLM2} {GSM8K} {TEXTS} --batch-size 16",
    "gemma3-gsm8k-texts": f"trace {GEMMA3} {GSM8K} {TEXTS} --batch-size 16",
    "smollm2-qa-last": f"trace {SMOLLM2} {ANSWERS} --strategy last --window 10",
    "smollm2-qa-valley": f"trace {SMOLLM2} {ANSWERS} {VALLEY}",
    "gemma3-qa-last": f"trace {GEMMA3} {ANSWERS} --strategy last --window 10",
    "gemma3-qa-valley": f"trace {GEMMA3} {ANSWERS} {VALLEY}",
    **{
        f"smollm2-lens-{lens}": f"trace {SMOLLM2} {SAMPLE} --max-new-tokens 128 --batch-size 20"
        f"{through('smollm2', lens)} --targets --kl --sublayers"
        for lens in LENSES
    },
    **{
        f"smollm2-ablation-{lens}": f"ablate {SMOLLM2} {TASK} --arms valley --p 1{through('smollm2', lens)} "
        "--batch-size 20 --max-new-tokens 128"
        for lens in LENSES
    },
    **{
        f"smollm2-given-{lens}": f"trace {SMOLLM2} --prompts {{runs}}/lenses/held-out.jsonl --no-chat-template "
        f"--max-new-tokens 0 --batch-size 4{through('smollm2', lens)} --targets"
        for lens in LENSES
    },
    **{
        f"gemma3-lens-{lens}": f"trace {GEMMA3} {SAMPLE} --max-new-tokens 48 --batch-size 30{through('gemma3', lens)} "
        "--sublayers"
        for lens in LENSES
    },
    **{
        f"gemma3-ablation-{lens}": f"ablate {GEMMA3} {TASK} --data-file {QUESTIONS} --arms valley --p 1"
        f"{through('gemma3', lens)} --no-chat-template --max-new-tokens 48 --stop-strings '\n' --batch-size 20"
        for lens in LENSES
    },
    "explained": f"eval {SMOLLM2} {TASK} --strategies valley --temperature 0.7 --epochs 4 --max-new-tokens 128 "
    "--batch-size 60",
    "smollm2-confidence": f"trace {SMOLLM2} {SAMPLE} --limit 10 --max-new-tokens 64 --batch-size 10 --confidence",
    "gemma3-confidence": f"trace {GEMMA3} {SAMPLE} --limit 10 --max-new-tokens 64 --batch-size 10 --confidence",
}
"""The arguments of `layerlens`, by the name of the run's folder in RUNS."""

EARLIER = {name: asked.replace(TASK, SAMPLE) for name, asked in RUNS.items() if asked.startswith(f"ablate {SMOLLM2}")}
"""What was asked of an earlier version for the runs that are committed. It answered and scored the same problems in a
runner of its own, in batches and not one by one, so that other layers and tokens were drawn where any are."""


def kept(run: str, name: str) -> str:
    """The command that copies the manifest of a run beside what was made from the run."""
    return f"cp {{runs}}/{run}/manifest.json {{folder}}/{name}"


def counted(last: str, valley: str) -> list[str]:
    """The command for the claims that two runs of the same problems answer."""
    manifests = [kept(run, f"{name}/manifest.json") for name, run in (("last", last), ("valley", valley))]
    return [f"analyses/findings.py {{runs}}/{last} {{runs}}/{valley} {{folder}}", *manifests]


def drawn(last: str, valley: str) -> list[str]:
    """The commands for figures and tables of two runs of the same problems."""
    return [
        *counted(last, valley),
        *(f"layerlens figure {number} --run {{runs}}/{last} --out {{folder}}" for number in (1, 2, 4)),
        *(
            f"layerlens figure {number} --run {{runs}}/{valley} --beside {{runs}}/{last} --out {{folder}}"
            for number in range(7, 13)
        ),
        *(
            f"layerlens table all --run {{runs}}/{run} --out {{folder}}/{name}"
            for name, run in (("last", last), ("valley", valley))
        ),
    ]


def compared(one: str, other: str) -> list[str]:
    """The command for two models on the same texts."""
    return [
        f"analyses/models.py {{runs}}/{one} {{runs}}/{other} {{folder}} --skip-first",
        kept(one, "smollm2/manifest.json"),
        kept(other, "gemma3/manifest.json"),
    ]


def by_lens(model: str, answered: tuple[str, ...] = ()) -> list[str]:
    """The commands for the same tokens of a model under each lens, as it is and at its temperature, and for answers
    from the valley."""
    runs = [f"{{runs}}/{model}-lens-{lens}" for lens in LENSES]
    ablations = [f"{model}-ablation-{lens}" for lens in answered]
    asked = "".join(f" --evaluation {{runs}}/{ablation}" for ablation in ablations)
    return [
        f"analyses/lenses.py {' '.join(runs)} {{folder}}{asked}",
        *(f"analyses/temperature.py {run} {{folder}}" for run in runs),
        *(kept(f"{model}-lens-{lens}", f"{lens}/manifest.json") for lens in LENSES),
        *(kept(name, f"{lens}/manifest-ablation.json") for name, lens in zip(ablations, answered, strict=True)),
    ]


def by_drafts(name: str, model: str) -> list[str]:
    """The commands for what drafts are worth on a model; they measure times, so run them alone on the machine."""
    place = f"{{runs}}/{name}-drafts"
    tables = ("speculative.csv", "acceptance.csv", "blocks.csv", "blocks.png", "report.json")
    return [
        f"layerlens bench speculative {model} --policies {','.join(POLICIES)} --run {{runs}}/{name}-confidence "
        f"--limit 10 --max-new-tokens 100 --blocks --out {place}",
        *(f"cp {place}/{table} {{folder}}/{table}" for table in tables),
        kept(f"{name}-confidence", "manifest.json"),
    ]


FOLDERS = {
    "theory": ["analyses/theory.py {folder}"],
    "smollm2-criteria": ["analyses/criteria.py {folder}"],
    "smollm2-gsm8k": [
        *drawn("gsm8k-last", "gsm8k-valley"),
        "analyses/theory.py {runs}/gsm8k-theory --run {runs}/gsm8k-last",
        *(f"cp {{runs}}/gsm8k-theory/{name} {{folder}}/last/{name}" for name in ("parameters.csv", "prediction.csv")),
    ],
    "smollm2-benchmarks": [
        f"layerlens eval {SMOLLM2} --tasks gsm8k,math500 --strategies valley,dola,sled --limit gsm8k=200 "
        "--limit math500=100 --max-new-tokens 320 --batch-size 64 --out {runs}/benchmarks",
        "analyses/benchmarks.py {runs}/benchmarks {folder}",
        "analyses/greedy.py {runs}/benchmarks {folder}",
    ],
    "gemma3-benchmarks": [
        f"layerlens eval {GEMMA3} --tasks gsm8k --strategies valley,dola,sled --limit 100 --max-new-tokens 128 "
        "--batch-size 50 --out {runs}/gemma3-benchmarks",
        "analyses/benchmarks.py {runs}/gemma3-benchmarks {folder}",
        "analyses/greedy.py {runs}/gemma3-benchmarks {folder}",
    ],
    "smollm2-drafts": by_drafts("smollm2", SMOLLM2),
    "gemma3-drafts": by_drafts("gemma3", GEMMA3),
    "smollm2-sample": drawn("sample-last", "sample-valley"),
    "smollm2-sample/answers": counted("smollm2-qa-last", "smollm2-qa-valley"),
    "smollm2-sample/explained": [
        "analyses/benchmarks.py {runs}/explained {folder}",
        "layerlens figure explanation --evaluation {runs}/explained --out {folder}",
        kept("explained", "manifest.json"),
    ],
    "smollm2-sample/ablation": [
        "layerlens figure 3 --evaluation {runs}/ablation-sample --out {folder}",
        "layerlens table 7 --evaluation {runs}/ablation-sample "
        + " ".join(f"--evaluation {{runs}}/ablation-sample-T{temperature}" for temperature in TEMPERATURES)
        + " --out {folder}",
        kept("ablation-sample", "manifest.json"),
        *(kept(f"ablation-sample-T{temperature}", f"manifest-T{temperature}.json") for temperature in TEMPERATURES),
    ],
    "gemma3-sample": drawn("gemma3-sample-last", "gemma3-sample-valley"),
    "gemma3-sample/answers": counted("gemma3-qa-last", "gemma3-qa-valley"),
    "gemma3-sample/texts": compared("smollm2-sample-texts", "gemma3-sample-texts"),
    "gemma3-sample/texts/gsm8k": compared("smollm2-gsm8k-texts", "gemma3-gsm8k-texts"),
    "smollm2-lenses": [
        *by_lens("smollm2", tuple(LENSES)),
        f"analyses/given.py {' '.join(f'{{runs}}/smollm2-given-{lens}' for lens in LENSES)} {{folder}}",
        *(kept(f"smollm2-given-{lens}", f"{lens}/manifest-given.json") for lens in LENSES),
    ],
    "gemma3-lenses": by_lens("gemma3", tuple(LENSES)),
    "lenses": ["analyses/lens_figure.py SmolLM2={out}/smollm2-lenses 'Gemma 3={out}/gemma3-lenses' {folder}"],
    "verdicts": ["analyses/verdicts.py {out}"],
}
"""The commands that make each folder of figures/ from runs. "verdicts" are the files beside the folders, made from
all."""


def main() -> None:
    """Run the commands of the folders that were asked for; each command is printed before it runs."""
    options = parser.parse_args()
    unknown = [folder for folder in options.folders if folder not in FOLDERS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no folder of figures/; give some of: {', '.join(FOLDERS)}")
    for folder in options.folders or FOLDERS:
        for words in commands(folder, options.runs, options.out, options.gsm8k):
            print(shown(words), flush=True)
            if not options.show:
                carry_out(words, options.runs)


def commands(folder: str, runs: Path, out: Path, gsm8k: Path | None = None) -> list[list[str]]:
    """Every command for a folder, as lists of arguments; the runs that it needs come first."""
    lines = FOLDERS[folder]
    needed = dict.fromkeys(re.findall(r"\{runs\}/([\w.-]+)", " ".join(lines)))
    asked = [f"layerlens {RUNS[name]} --out {{runs}}/{name}" for name in needed if name in RUNS]
    words = [
        shlex.split(line.format(runs=shlex.quote(str(runs)), out=out, folder=out / folder)) for line in [*asked, *lines]
    ]
    local = [] if gsm8k is None else ["--data-file", str(gsm8k)]
    return [[*command, *local] if "gsm8k" in command else command for command in words]


def carry_out(words: list[str], runs: Path) -> None:
    """Run a command, unless it would make a run that is already complete."""
    program, *rest = words
    if program == "cp":
        source, target = map(Path, rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return
    if "speculative" in rest and (Path(rest[rest.index("--out") + 1]) / "report.json").exists():
        return
    if rest[0] in ("trace", "ablate", "eval"):
        manifest = Path(rest[rest.index("--out") + 1]) / "manifest.json"
        if manifest.exists():
            if json.loads(manifest.read_text(encoding="utf-8"))["totals"] is not None:
                return
            if rest[0] == "trace":
                rest.append("--resume")
        if any(word.endswith("qa.jsonl") for word in rest):
            write_questions(runs / "qa.jsonl")
    start = ["-m", "layerlens"] if program == "layerlens" else [str(ROOT / program)]
    done = subprocess.run([sys.executable, *start, *rest])
    if done.returncode:
        sys.exit(f"{shown(words)} ended with status {done.returncode}; what it said is above")


def write_questions(path: Path) -> None:
    """Write the sample problems as prompts for a base model, which is to end the line with the answer."""
    rows = map(json.loads, (ROOT / "data" / "sample.jsonl").read_text(encoding="utf-8").splitlines())
    asked = [{**row, "question": f"Question: {row['question']}\nAnswer:"} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")


def shown(words: list[str]) -> str:
    """The command as it is typed in a shell."""
    python = ["python"] if words[0].endswith(".py") else []
    return shlex.join([*python, *words]).replace("'\n'", r"$'\n'")


parser = argparse.ArgumentParser(description="Make the folders of figures/ again.")
parser.add_argument("runs", type=Path, help="where runs are, or are to be traced")
parser.add_argument("folders", nargs="*", metavar="FOLDER", help=", ".join(FOLDERS))
parser.add_argument("--out", type=Path, default=Path("figures"), help="[figures]")
parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="test.jsonl of GSM8K, in place of the hub's")
parser.add_argument("--show", action="store_true", help="print the commands and do nothing")

if __name__ == "__main__":
    main()
