"""lm-eval with our model: `last` is its own `hf` model, and strategies are those of the decoding loop."""

import json
import sys
from subprocess import run

import pytest
import torch

import layerlens as ll
from tests.conftest import needs_smollm2
from tests.refusals import refused
from tests.thorough import thorough

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


SCORED = [("Hello there,", " you"), ("abc", "def"), ("abc", "x"), ("", "to be"), ("a longer text, of words", " and")]
ASKED = [(text, {"until": ["#"], "max_gen_toks": 9}) for text in ("Hello there,", "abc", "a longer text, of words")]


def both(model):
    return (
        model.loglikelihood(instances("loglikelihood", SCORED), disable_tqdm=True),
        model.generate_until(instances("generate_until", ASKED), disable_tqdm=True),
        model.loglikelihood_rolling(instances("loglikelihood_rolling", [("to be or not",)]), disable_tqdm=True),
    )


def made(folder, **arguments):
    from layerlens.evaluation.lm_eval.model import Strategic

    return Strategic(str(folder), device="cpu", batch_size=2, **arguments)


def test_last_is_hf_request_by_request(folder):
    from lm_eval.models.huggingface import HFLM

    assert both(made(folder)) == both(HFLM(str(folder), device="cpu", batch_size=2))


@pytest.mark.parametrize(
    ("name", "options", "strategy"),
    [
        ("valley", {"window": 3}, ll.Valley(window=3)),
        ("last-1", {}, ll.Fixed(1)),
        ("dola-low", {}, ll.DoLa(candidates="low")),
        ("dola-low", {"relative_top": 0.0}, ll.DoLa(candidates="low", relative_top=0.0)),
    ],
)
def test_log_likelihoods_are_those_of_the_layers_that_the_strategy_chooses(folder, name, options, strategy):
    """Each token is scored by our loop, which chooses the logits of a text's last position."""
    model = ll.load(folder)
    harness = made(folder, strategy=name, **options)
    scored, texts, _ = both(harness)
    own = {text: ll.generate(model, text, strategy=strategy, max_new_tokens=9).text.split("#")[0] for text, _ in ASKED}
    assert texts == [own[text] for text, _ in ASKED]
    for (context, continuation), (told, is_greedy) in zip(SCORED, scored, strict=True):
        before = model.tokenizer(context).input_ids if context else [harness.prefix_token_id]
        after = model.tokenizer(context + continuation).input_ids[len(before) if context else 0 :]
        total, greedy = 0.0, True
        for place, token in enumerate(after):
            logits = chosen(model, strategy, [*before, *after[:place]])
            total += max(float(logits.double().log_softmax(-1)[token]), -1000.0)  # for what DoLa rules out
            greedy &= int(logits.argmax()) == token
        assert told == pytest.approx(total, rel=1e-4)
        assert is_greedy == greedy


def chosen(model, strategy, ids):
    """The logits after a text, by a chooser that reads one position."""
    from layerlens.decode.chooser import Chooser
    from layerlens.models.use import in_use

    with in_use(model), torch.no_grad():
        chooser = Chooser(model, strategy)
        with chooser.choosing():
            return model.hf(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize(
    "options", [{"add_bos_token": True}, {"add_bos_token": False}, {"tokenizer": True}, {"use_fast_tokenizer": True}]
)
def test_the_tokenizer_is_the_one_that_hf_would_make(folder, options, tmp_path):
    from lm_eval.models.huggingface import HFLM

    if "tokenizer" in options:
        model = ll.load(folder)
        model.tokenizer.save_pretrained(tmp_path)
        options = {"tokenizer": str(tmp_path)}
    assert both(made(folder, **options)) == both(HFLM(str(folder), device="cpu", batch_size=2, **options))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"strategy": "valley", "windo": 3}, "windo"),
        ({"window": 3}, "window"),
        ({"strategy": "last", "nonsense": 1}, "nonsense"),
        *(({name: "x"}, name) for name in ("peft", "delta", "gguf_file", "subfolder", "config", "attn_implementation")),
        ({"load_in_4bit": True}, "load_in_4bit"),
        ({"parallelize": True}, "parallelize"),
        ({"backend": "vllm"}, "backend"),
        ({"strategy": "vally"}, "strategy"),
    ],
)
def test_an_argument_without_effect_is_refused(folder, options, name):
    with refused(ll.OptionError, name, options[name], problem=f"{name}={options[name]} "):
        made(folder, **options)


def test_a_model_is_needed_and_a_gguf_has_its_own_tokenizer():
    from layerlens.evaluation.lm_eval.model import Strategic

    with refused(ll.OptionError, "pretrained", ""):
        Strategic(strategy="valley")
    needs_smollm2()
    with refused(ll.OptionError, "add_bos_token", True, advice="tokenizer=FOLDER"):
        Strategic("smollm2-135m-instruct", add_bos_token=True)


def test_draws_follow_the_seed_and_the_text(folder):
    """With one seed for all passes, every text would be read from the same layers at the same places."""
    harness = made(folder, strategy="valley", window=3, p=0.5)
    asked = instances("loglikelihood", [("abcdefghijkl", "mnopqrstuvwx"), ("abcdefghijkl", "mnopqrstuvwy")])

    def scored(seed):
        torch.manual_seed(seed)
        return [score for score, _ in harness.loglikelihood(asked, disable_tqdm=True)]

    assert scored(0) == scored(0)
    assert scored(0) != scored(1)


@thorough
def test_the_command_line_is_lm_evals(folder, tmp_path):
    task = tmp_path / "tasks" / "sums.yaml"
    task.parent.mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} + {n} =", "answer": f" {2 * n}"}) + "\n" for n in range(4)))
    task.write_text(
        "task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {rows}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: 0\ndoc_to_choice: \"{{[answer, ' 1']}}\"\nmetric_list:\n  - metric: acc\n"
    )
    arguments = f"pretrained={folder},strategy=valley,window=3"
    command = [sys.executable, "-m", "layerlens", "lm-eval", "--model", "layerlens", "--model_args", arguments]
    command += [
        "--tasks",
        "sums",
        "--include_path",
        str(task.parent),
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path),
    ]
    done = run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["sums"]["alias"] == "sums"
    wrong = run(
        [*command[:6], "--model_args", f"pretrained={folder},strategy=vally", *command[8:]],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("layerlens: strategy=vally is unknown")
