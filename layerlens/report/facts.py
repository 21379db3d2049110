"""What was run, as HTML: the model, the data, how tokens were chosen, when, and on which hardware."""

import json
from datetime import datetime, timezone
from typing import Any

from layerlens.records.reader import Records
from layerlens.report.findings import count
from layerlens.report.markup import Markup, element, join


def heading(run: Records) -> Markup:
    """The model as title, and one line that says what was traced and how much."""
    return join(element("h1", str(run.manifest["model"]["source"])), element("p", summary(run)))


def summary(run: Records) -> str:
    """What was traced and how much, in one line."""
    strategy = run.manifest["strategy"]["name"]
    amounts = [
        f"{count(len(run.prompts), 'prompt')} of {run.manifest['dataset']['name']}",
        count(sum(run.lengths.values()), "position"),
        count(run.n_layers, "layer"),
        f"decoded by {strategy}" if run.n_generated else "nothing generated: the texts were given",
    ]
    return " · ".join(amounts)


def labels(run: Records, other: Records) -> list[str]:
    """The names of two runs beside each other: folders, models, strategies, and what else they differ in."""
    pair = [one.manifest for one in (run, other)]
    lenses = [manifest["lens"]["kind"] if "lens" in manifest else "logit" for manifest in pair]
    said = []
    for one, manifest, its, lens in zip((run, other), pair, reversed(pair), lenses, strict=True):
        strategy, beside = manifest["strategy"], its["strategy"]
        parts = [str(manifest["model"]["source"]), str(strategy["name"])]
        if strategy["name"] == beside["name"]:
            parts.append(_options({key: value for key, value in strategy.items() if beside.get(key) != value}))
        if set(lenses) != {"logit"}:
            parts.append(f"{lens} lens")
        said.append(f"{one.path.name}: {', '.join(filter(None, parts))}")
    return said


def _lens(run: Records) -> str:
    """The lens that layers were read through; "" for an old run, from before there were other lenses."""
    return ", ".join(str(value) for key, value in run.manifest.get("lens", {}).items() if key != "sha256")


def facts(run: Records) -> Markup:
    """What the manifest says about the run: the main facts at once, and the rest to be opened."""
    manifest = run.manifest
    model, dataset, hardware = manifest["model"], manifest["dataset"], manifest.get("hardware", {})
    options = manifest.get("options", {})
    first = {
        "Model": _listed(model, ("source", "family", "dtype", "device")),
        "Size": f"{run.n_layers} layers, width {model['d_model']:,}, vocabulary {model['n_vocab']:,}",
        "Data": _listed(dataset, ("name", "config", "split")) + f", {count(dataset['rows'], 'prompt')}",
        "Strategy": _options(manifest["strategy"]),
        "Lens": _lens(run),
        "Mode": f"{manifest['mode']}, {options.get('positions', 'all')} positions, window {manifest['window']}",
        "Date": _moment(str(manifest["created"])),
        "Hardware": _listed(hardware, ("processor", "machine", "system"))
        + (f", {count(hardware['threads'], 'thread')}" if hardware.get("threads") else ""),
    }
    more = {
        "Options": _options(options),
        "Seed": str(manifest.get("seed")),
        "Model revision": _listed(model, ("revision", "fingerprint")),
        "Data revision": _listed(dataset, ("revision", "sha256")),
        "Versions": _options(manifest.get("versions", {})),
        "Totals": _counts(manifest.get("totals") or {}),
        "Command": " ".join(map(str, manifest.get("command", []))),
        "Directory": str(run.path),
    }
    return join(
        _described(first),
        element("details", element("summary", "Options, versions and the command"), _described(more)),
    )


def _moment(created: str) -> str:
    """A time of the manifest as people write it; anything that is not a time stays as it is."""
    try:
        return datetime.fromisoformat(created).astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return created


def _described(entries: dict[str, str]) -> Markup:
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in entries.items() if value]
    return element("dl", *pairs, attributes={"class": "facts"})


def _listed(record: dict[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(str(record[name]) for name in names if record.get(name))


def _options(record: dict[str, Any]) -> str:
    """A record in one line: its name, then every option that is set."""
    given = [f"{key} {_value(value)}" for key, value in record.items() if key != "name" and value is not None]
    return ", ".join([*([str(record["name"])] if "name" in record else []), *given])


def _counts(record: dict[str, Any]) -> str:
    """`_options` of a record whose whole numbers are counts, with separators."""
    return _options({key: f"{value:,}" if type(value) is int else value for key, value in record.items()})


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
