"""Where a model's thinking ends and its answer begins."""

_OPEN, _CLOSE = "<think>", "</think>"


def parted(prompt: str, text: str) -> tuple[str | None, str]:
    """The thinking of a generated text, or None where it has none, and its answer.

    Args:
        prompt: what the model read; some chat templates end it with the tag that opens the thinking.
        text: what it wrote. Thinking that was not closed leaves an empty answer.
    """
    begins = prompt.rstrip().endswith(_OPEN) or text.lstrip().startswith(_OPEN)
    before, closes, after = text.rpartition(_CLOSE)
    if closes:
        return before.replace(_OPEN, "").strip(), after.lstrip()
    return (text.replace(_OPEN, "").strip(), "") if begins else (None, text)
