"""Runs that no model made, with properties planted in them; written as a tracer writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from layerlens.records import RunWriter, new_manifest
from layerlens.records.schema import ON_REQUEST
from layerlens.run import Run, open_run

Measures = dict[str, Any]


def write_run(
    folder: Path,
    prompts: dict[str, Measures],
    *,
    finish_reasons: dict[str, str] | None = None,
    layer_kinds: list[str] | None = None,
    n_vocab: int = 49152,
    window: int = 10,
    strategy: str = "last",
    words: dict[int, str] | None = None,
    texts: dict[str, str] | None = None,
    finish: bool = True,
    lens: dict[str, Any] | None = None,
) -> Run:
    """The run at `folder` with one batch per prompt.

    Args:
        folder: a new directory.
        prompts: for each prompt id some columns of tokens, per-layer ones as [tokens, L]; "entropy" must be among
            them. What is not given is made up: the measures constant, token ids counted, the rest from the entropy.
        finish_reasons: of some prompts; "length" for the others.
        layer_kinds: of the layers; "full" throughout where not given.
        n_vocab, window, strategy: what the manifest says.
        words: the text of token ids.
        texts: what the model was given, of some prompts; a text of their id for the others.
        finish: whether the run is complete.
        lens: what the manifest says of the lens, such as its kind and source; the logit lens where not given.
    """
    n_layers = int(np.shape(next(iter(prompts.values()))["entropy"])[1])
    model = {"source": "made up", "family": "made_up", "n_layers": n_layers, "d_model": 8, "n_vocab": n_vocab}
    manifest = new_manifest(
        seed=0,
        model=model | {"layer_kinds": layer_kinds or ["full"] * n_layers},
        dataset={"name": "made up", "rows": len(prompts)},
        strategy={"name": strategy},
        mode="generate",
        options={"positions": "generated"} | _requested(prompts),
        window=window,
        batches=[[prompt_id] for prompt_id in prompts],
        **({} if lens is None else {"lens": lens}),
    )
    with RunWriter(folder, manifest) as writer:
        for index, (prompt_id, given) in enumerate(prompts.items()):
            rows = token_rows(prompt_id, given, window)
            n_tokens = len(rows["position"])
            row = _prompt_row(prompt_id, n_tokens, (finish_reasons or {}).get(prompt_id, "length"))
            if texts and prompt_id in texts:
                row["prompt"] = [texts[prompt_id]]
            writer.write(index, rows, row)
        if finish:
            writer.finish({"prompts": len(prompts)}, words or {})
    return open_run(folder)


def _requested(prompts: dict[str, Measures]) -> dict[str, Any]:
    """The options that ask for the columns that are given."""
    given = {name: values for prompt in prompts.values() for name, values in prompt.items()}
    asked = {option: any(column.name in given for column in columns) for option, columns in ON_REQUEST.items()}
    return asked | {"top": np.shape(given["top_k_probs"])[2] if asked["top"] else 0}


def token_rows(prompt_id: str, given: Measures, window: int = 10) -> Measures:
    """Every declared column of tokens for one prompt: those given, the others made up."""
    entropy = np.asarray(given["entropy"], dtype=np.float32)
    n_tokens, n_layers = entropy.shape
    counted = np.arange(n_tokens, dtype=np.int32)
    made_up = {
        "prompt_id": [prompt_id] * n_tokens,
        "position": counted + 5,
        "token_id": counted,
        "next_token_id": counted + 1,
        "is_generated": np.ones(n_tokens, dtype=bool),
        "norm_ratio": np.full(entropy.shape, 0.3),
        "io_cosine": np.full(entropy.shape, 0.95),
        "attn_ratio": np.full(entropy.shape, 0.1),
        "mlp_ratio": np.full(entropy.shape, 0.2),
        "top_token_id": np.zeros(entropy.shape, dtype=np.int32),
        "valley_layer": np.array([eq7(row, window) for row in entropy], dtype=np.int16),
        "selected_layer": np.full(n_tokens, n_layers, dtype=np.int16),
        "perturbed": entropy[:, -1] > entropy[:, max(n_layers - 2, 0)],
    }
    assert given.keys() <= made_up.keys() | {"entropy"} | {
        column.name for columns in ON_REQUEST.values() for column in columns
    }
    return made_up | given | {"entropy": entropy}


def eq7(entropy: Any, window: int) -> int:
    """The valley layer of one token, 1..L, read off Eq. 7 of arXiv 2606.21906."""
    layer = len(entropy)
    while layer > max(1, len(entropy) - window + 1) and entropy[layer - 2] < entropy[layer - 1]:
        layer -= 1
    return layer


def planted(
    curves: Measures,
    *,
    n_prompts: int = 8,
    n_tokens: int = 40,
    perturbed_share: float = 0.3,
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, Measures]:
    """Prompts whose mean curves are the given ones, for `write_run`.

    Args:
        curves: "perturbed" and "unperturbed" entropy by layer, and any of the measures by layer, [L] each.
        n_prompts, n_tokens: how many prompts, and tokens in each.
        perturbed_share: in every prompt the first tokens, as many as this share of them, follow "perturbed".
        noise: sd of a factor exp(...) with mean 1 on the curves, drawn once a prompt and once a token, the same for
            all layers; 0 gives the curves themselves.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    prompts = {}
    for index in range(n_prompts):
        perturbed = np.arange(n_tokens) < round(perturbed_share * n_tokens)
        factor = np.exp(noise * (random.normal() + random.normal(size=n_tokens)) - noise**2)[:, None]
        entropy = np.where(perturbed[:, None], curves["perturbed"], curves["unperturbed"]) * factor
        measures = {name: np.asarray(curves[name]) * factor for name in _RATIOS & curves.keys()}
        if "io_cosine" in curves:
            measures["io_cosine"] = np.clip(np.asarray(curves["io_cosine"]) * np.ones_like(factor), -1, 1)
        prompts[f"made-up-{index:03d}"] = measures | {"entropy": entropy}
    return prompts


def hybrid_curves(n_layers: int = 40) -> Measures:
    """Curves as the paper prints them for a hybrid model: phase I = 1..4, III = {L}, V_onset = 0.7 L, V* = L - 1.

    Every fourth layer has full attention and sticks out of the plateau a little.
    """
    layer = np.arange(1, n_layers + 1)
    full = layer % 4 == 0
    ratio, cosine = np.where(full, 0.5, 0.28), np.where(full, 0.92, 0.96)
    ratio[:4], cosine[:4] = [1.6, 1.0, 0.9, 0.8], [0.67, 0.78, 0.80, 0.84]
    ratio[-1], cosine[-1] = 0.85, 0.69
    onset = round(0.7 * n_layers)
    corners = [1, 3, onset, n_layers - 1, n_layers]
    return {
        "norm_ratio": ratio,
        "io_cosine": cosine,
        "attn_ratio": 0.45 * ratio,
        "mlp_ratio": 0.7 * ratio,
        "perturbed": np.interp(layer, corners, [8.0, 11.3, 11.3, 0.52, 0.89]),
        "unperturbed": np.interp(layer, corners, [8.0, 11.4, 11.4, 2.78, 0.26]),
    }


def hybrid_kinds(n_layers: int = 40) -> list[str]:
    """The kinds of the layers of `hybrid_curves`."""
    return ["full" if layer % 4 == 0 else "linear" for layer in range(1, n_layers + 1)]


_RATIOS = {"norm_ratio", "attn_ratio", "mlp_ratio"}


def _prompt_row(prompt_id: str, n_tokens: int, finish_reason: str) -> Measures:
    row = {
        "prompt_id": prompt_id,
        "prompt": f"the text of {prompt_id}",
        "reference": None,
        "output": "words",
        "n_prompt_tokens": 6,
        "n_generated_tokens": n_tokens,
        "finish_reason": finish_reason,
        "seconds": 0.5,
    }
    return {name: [value] for name, value in row.items()}
