"""How an existing run differs from what is asked for now, in the caller's spelling."""

import json
from typing import Any

from layerlens.errors import spelled
from layerlens.records.schema import default_window

_CIRCUMSTANCES = {
    "created",
    "command",
    "hardware",
    "totals",
    "merged_from",
}  # may differ between the sessions of one run
_STRATEGY_DEFAULTS = {"p": 1.0, "criterion": "shannon", "entropy_floor": 0.0}
_THREE_WAYS = (  # None is the default, and False is another choice
    "options.add_special_tokens",
    *(f"generation.{name}" for name in ("add_special_tokens", "chat_template", "generation_config")),
)

_OPTIONS = {
    **{name: name for name in ("seed", "mode", "window", "strategy", "lens")},
    **{f"model.{name}": name for name in ("dtype", "device", "revision")},
    **{f"strategy.{name}": name for name in _STRATEGY_DEFAULTS},
    "model.source": "model",
    "dataset.rows": "limit",
    "dataset.shard": "shard",
}
"""The option of each entry that is one. All entries of the section "options" are options, by their own names."""

_OPAQUE = {
    "batches": "other prompts",
    "chat_template_sha256": "another chat template",
    "strategy_code": "other code of its strategy",
    "dataset.sha256": "another file of prompts",
    "dataset.prompts_sha256": "other prompts",
    "dataset.ids_sha256": "other prompts",
    "dataset.items_sha256": "other items",
    "lens.sha256": "another file of the lens",
    "options.generation_config": "another generation config of the model",
    "model.fingerprint": "other weights or another config of the model",
    "model.modules": "other modules, forwards or settings of modules in the model",
}
"""Entries whose values say nothing to a user, and what is said in their place."""

_MODEL = ("model.source", "model.fingerprint")
_PROMPTS = ("dataset.name", "dataset.sha256", "dataset.revision", "dataset.rows")
_TEMPLATE = ("options.system", "options.chat_template", "options.chat_template_args")
_WORDING = (*_PROMPTS, *_MODEL, *_TEMPLATE, "seed")
_SHARD = ("dataset.shard",)
_BATCHES = (*_PROMPTS, *_SHARD, "options.batch_size")
_FOLLOWS = {
    "batches": _BATCHES,
    "chat_template_sha256": (*_MODEL, "options.chat_template"),
    "dataset.items_sha256": _WORDING,
    "dataset.prompts_sha256": (*_WORDING, *_SHARD),
    "dataset.ids_sha256": _SHARD,
    "dataset.all_rows": _SHARD,
    "dataset.rows": ("dataset.name", "dataset.sha256", *_SHARD),
    "model.fingerprint": ("model.source", "model.dtype", "model.quantization"),
    "model.modules": ("model.fingerprint", "model.device", "model.backend", "model.attention"),
    "lens.sha256": ("lens",),
    "model.hooks": ("model.fingerprint", "model.backend"),
    "padding": ("mode",),
    "strategy_code": ("strategy",),
    **{f"dataset.{name}": ("dataset.name",) for name in ("config", "split", "revision", "sha256")},
    **{f"model.{name}": _MODEL for name in ("family", "n_layers", "d_model", "n_vocab")},
    **{f"model.{name}": _MODEL for name in ("layer_kinds", "mlp_kinds", "multiply_adds")},
}
"""Entries that are not mentioned where one of the listed entries differs too, because they follow from it."""


def disagreement(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """What a run was begun with and what is given now, as "seed 0, not with seed 9"; None where the rows would agree.

    Args:
        ours: the manifest of what is asked for.
        theirs: the manifest of the run that is there.
    """
    left, right = _flat(ours), _flat(theirs)
    differing = {key for key in left.keys() | right.keys() if not _same(left.get(key), right.get(key))}
    if all(flat.get("window") == flat.get("strategy.window") for flat in (left, right)):
        differing.discard("strategy.window")  # one window gave both
    if left.get("strategy_code") is None or right.get("strategy_code") is None:
        differing.discard("strategy_code")  # which older runs do not say
    for key in ("model.hooks", "model.modules"):
        if left.get(key) is None or right.get(key) is None:
            differing.discard(key)  # likewise
    if left.get("lens.sha256") == right.get("lens.sha256") is not None:
        differing.discard("lens")  # what is in it tells it better than where it lies
    if "model.fingerprint" not in differing:
        differing.discard("model.source")  # its weights and config tell a model better than how it was named
    if not differing:
        return None
    telling = [key for key in sorted(differing) if differing.isdisjoint(_follows(key))]
    said = [(_said(key, right.get(key)), _said(key, left.get(key))) for key in telling]
    begun, now = (list(dict.fromkeys(words)) for words in zip(*said, strict=True))
    now = [words for words in now if words not in begun]
    return ", ".join(begun) + (f", not with {', '.join(now)}" if now else "")


def _follows(key: str) -> tuple[str, ...]:
    if key.startswith("strategy.") and key not in _OPTIONS:
        return ("strategy",)
    return _FOLLOWS.get(key, ())


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two JSON values are equal. A NaN equals a NaN."""
    return bool(ours == theirs) or json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """Every entry that matters to the rows, by section and name. An entry that is off is None."""
    entries = json.loads(json.dumps({key: value for key, value in manifest.items() if key not in _CIRCUMSTANCES}))
    counted = entries.get("model", {}).get("n_layers")
    n_layers = counted if isinstance(counted, int) else None
    strategy = _of_strategy(entries.pop("strategy"), n_layers) if "strategy" in entries else {}
    lens = entries.pop("lens", {"kind": "logit"})  # as it was before there were others
    if lens["kind"] != "logit":
        entries |= {"lens": f"{lens['kind']}:{lens.get('source')}", "lens.sha256": lens.get("sha256")}
    if entries.get("options", {}).get("top") == 0:
        del entries["options"]["top"]
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return {key: None if value is False and key not in _THREE_WAYS else value for key, value in flat.items()} | strategy


def _of_strategy(record: dict[str, Any], n_layers: int | None) -> dict[str, Any]:
    """The strategy by its name or alias, and those of its options that matter to the rows."""
    options = dict(record)
    name = options.pop("name")
    if name == "fixed":
        name = f"last-{options.pop('offset', 0)}"
    elif name == "valley":
        shift = options.pop("shift", 0)
        name = f"valley{shift:+d}" if isinstance(shift, int) and shift else name
        options.pop("scan", None)  # how candidates are read out, with the same result
        if options.get("window") is None:  # as older manifests left it
            options["window"] = default_window(n_layers)
    elif name == "dola" and isinstance(options.get("candidates"), str):
        name = f"dola-{options.pop('candidates')}"
    return {"strategy": name} | {
        f"strategy.{option}": value for option, value in (_STRATEGY_DEFAULTS | options).items()
    }


def _said(key: str, value: Any) -> str:
    """An entry as the user would give it: "seed 0", or "--seed 0"."""
    section, _, name = key.rpartition(".")
    if key in _OPAQUE:
        return _OPAQUE[key]
    if key == "dataset.name":
        return _prompts(str(value))
    if key in ("options.chat_template", "generation.chat_template"):
        return (
            spelled("chat_template", False)
            if value is False or (value is None and section == "options")
            else "a chat template"
        )
    if key == "model.quantization":
        return "weights that are not quantised" if value is None else f"weights quantised by {value}"
    if key == "model.hooks":
        return f"the hook{'s' if len(value) > 1 else ''} {', '.join(value)}" if value else "no hooks on the model"
    if key == "dataset.all_rows":
        return f"no {spelled('shard')}" if value is None else f"a {spelled('shard')} of {value} prompts"
    option = _OPTIONS.get(key, name if section in ("options", "generation") else None)
    if option is None:
        owner = "a strategy's " if section == "strategy" else ""
        return f"{owner}{name.replace('_', ' ')} {_shown(value)}"
    if key == "options.draft" and isinstance(value, dict):
        own = [f"{name}={json.dumps(one, default=str)}" for name, one in value.items() if name != "name"]
        return " ".join([spelled("draft", str(value.get("name"))), *(spelled("draft_option", one) for one in own)])
    return f"no {spelled(option)}" if value is None else spelled(option, _shortened(value))


def _prompts(name: str) -> str:
    if name == "prompts":  # what `from_prompts` calls texts that were given in Python
        return "a list of prompts"
    return spelled("prompts" if name.endswith((".txt", ".jsonl")) else "dataset", _shortened(name))


def _shown(value: Any) -> str:
    """The value of an entry that is not an option."""
    text = value if isinstance(value, str) else json.dumps(value).removesuffix(".0")
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _shortened(value: Any) -> Any:
    """The value, cut where it is a long text."""
    return f"{value[:56]} ..." if isinstance(value, str) and len(value) > 60 else value
