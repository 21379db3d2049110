"""Which prompts of two runs are the same: those with the same text, whatever their ids are."""

from collections import Counter
from collections.abc import Sequence

from layerlens.errors import RunError, spelled
from layerlens.records.reader import Records

_SHOWN = 60  # characters of a text


def paired_ids(run: Records, other: Records, ids: Sequence[str], other_ids: Sequence[str]) -> list[tuple[str, str]]:
    """The ids in this run and in the other of those prompts, among `ids`, that both runs have; in the order of `ids`.

    Two prompts are the same where the models were given equal texts. A text that a run has twice is paired by its id.
    The same problem becomes another text with another chat template, system message or date. So prompts that were read
    from one file, or from one dataset of the hub, are also paired by id. So are items of two lists in Python, where one
    text contains the other and the runs differ in template or system message.

    Raises:
        RunError: no prompt is in both runs, or the two prompts of a pair have different reference answers.
    """
    ours, theirs = texts_of(run), texts_of(other)
    by_id, held = _same_source(run, other), _rendering(run) != _rendering(other)
    partner = {
        name: name
        for name in set(ids) & set(other_ids)
        if by_id or ours[name] == theirs[name] or (held and _holds(ours[name], theirs[name]))
    }
    counts = [Counter(texts[name] for name in names) for texts, names in ((ours, ids), (theirs, other_ids))]
    by_text = {theirs[name]: name for name in other_ids if counts[1][theirs[name]] == 1 and name not in partner}
    for name in ids:
        if name not in partner and counts[0][ours[name]] == 1 and ours[name] in by_text:
            partner[name] = by_text[ours[name]]
    pairs = [(name, partner[name]) for name in ids if name in partner]
    if not pairs:
        _refuse(run, other, [(ours[name], theirs[name], name) for name in ids if name in theirs])
    _refuse_other_references(run, other, pairs)
    return pairs


def texts_of(run: Records) -> dict[str, str]:
    """The texts that the model was given, by prompt id."""
    return dict(zip(run.prompts["prompt_id"], run.prompts["prompt"], strict=True))


def _same_source(run: Records, other: Records) -> bool:
    """Whether both read their prompts from one file, or from one dataset of the hub, so that ids identify them."""
    pair = [one.manifest["dataset"] for one in (run, other)]
    digests = [dataset.get("sha256") for dataset in pair]
    if digests != [None, None]:
        return bool(digests[0] == digests[1])
    names = [[dataset.get(key) for key in ("name", "config", "split", "revision")] for dataset in pair]
    return bool(names[0] == names[1] and names[0][0] != "prompts")  # ids in a list are only places


def _rendering(run: Records) -> list[object]:
    """What made texts of the messages of a run: chat template and system message."""
    options = run.manifest.get("options", {})
    return [run.manifest.get("chat_template_sha256"), *map(options.get, ("system", "chat_template_args"))]


def _holds(text: str, other: str) -> bool:
    return text.strip() in other or other.strip() in text


def _refuse(run: Records, other: Records, alike: list[tuple[str, str, str]]) -> None:
    advice = f"trace both with the same {spelled('dataset')} or {spelled('prompts')}"
    if not alike:
        raise RunError(f"{run.path} and {other.path} have no prompt in common", advice, given=run.path)
    *texts, name = alike[0]
    alike_for = next((place for place, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), _SHOWN // 2)
    first = max(alike_for - _SHOWN // 2, 0)  # so that what differs is seen
    shown = [repr(text[first : first + _SHOWN]) for text in texts]
    raise RunError(
        f"{run.path} and {other.path} have no prompt in common: the same ids stand for different texts, as "
        f"{name!r} for {shown[0]} in the first and {shown[1]} in the second",
        advice,
        given=run.path,
    )


def _refuse_other_references(run: Records, other: Records, pairs: list[tuple[str, str]]) -> None:
    known = (one.prompts.dropna(subset=["reference"]) for one in (run, other))
    ours, theirs = (dict(zip(some["prompt_id"], some["reference"], strict=True)) for some in known)
    for name, its in pairs:
        if name in ours and its in theirs and ours[name] != theirs[its]:
            problem = f"prompt {name!r} of {run.path} has another reference answer in {other.path}"
            advice = f"trace both with the same {spelled('dataset')} or {spelled('prompts')}"
            raise RunError(problem, advice, given=name)
