"""What each layer does to each token, measured inside vLLM, against float64 sums over what transformers computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.engines.vllm.plugin import _take
from layerlens.engines.vllm.traces import unpacked
from layerlens.lens import IDENTITY
from layerlens.lens.files import Stored, write_lens
from layerlens.lens.opening import made_for, open_lens
from tests.engines.vllm.engines import answers, assert_same, engine, ours, ragged

PROMPTS = ragged(8)
TRACED = {"strategy": "valley", "window": 4, "traces": {"top": 3, "kl": True, "js": True, "targets": True}}


@torch.no_grad()
def plain(model, ids, last_id, transport=IDENTITY):
    """The columns of a trace of all positions of a text, which this last token followed."""
    states = streams(model, ids)
    h = states.double()
    read = [*(transport(one, layer) for layer, one in enumerate(states[1:-1], 1)), states[-1]]
    logits = torch.stack([model.unembed.logits(one) for one in read]).double()
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    following = torch.tensor([*ids[1:], last_id]).expand(len(logits), -1).unsqueeze(-1)
    own = logits.gather(-1, following)
    mixed = ((probs + probs[-1]) / 2).log()
    first = probs.topk(3)
    columns = {
        "norm_ratio": (h[1:] - h[:-1]).norm(dim=-1) / h[:-1].norm(dim=-1),
        "io_cosine": torch.cosine_similarity(h[1:], h[:-1], dim=-1),
        "entropy": -(probs * log_probs).sum(-1),
        "kl_last_to_layer": (probs[-1] * (log_probs[-1] - log_probs)).sum(-1),
        "js_from_last": ((probs * (log_probs - mixed)).sum(-1) + (probs[-1] * (log_probs[-1] - mixed)).sum(-1)) / 2,
        "top_k_probs": first.values,
        "next_log_prob": log_probs.gather(-1, following)[..., 0],
        "next_rank": (logits > own + 1e-5).sum(-1),
        "top_token_id": first.indices[..., 0],
        "top_k_token_ids": first.indices,
    }
    return {name: values.transpose(0, 1).numpy() for name, values in columns.items()}


def streams(model, ids):
    """What entered the first block, and what left each: [layers + 1, positions, d_model]."""
    seen = []

    def enter(_block, given, named):
        seen.append(given[0] if given else named["hidden_states"])

    def leave(_block, _given, out):
        seen.append(out[0] if isinstance(out, tuple) else out)

    hooks = [model.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [block.register_forward_hook(leave) for block in model.blocks]
    model.hf(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack([one[0] for one in seen])


def assert_traced(found, folder, prompts, rows, *, first=None, transport=IDENTITY):
    """The traces of some rows have all positions from the prompt's last, or from `first` on, with the right values."""
    model = ll.load(folder, dtype="float32")
    for row in rows:
        ids = [*prompts[row], *found.token_ids[row][:-1]]
        layers = found.records[row]["layers"]
        begin = len(prompts[row]) - 1 if first is None else first
        n = len(ids) - begin
        # the engine may have begun a step beyond the end of a text
        assert list(layers["position"][:n]) == list(range(begin, len(ids)))
        assert len(layers["position"]) <= n + 1
        columns = plain(model, ids, found.token_ids[row][-1], transport)
        wanted = {name: values for name, values in columns.items() if name in layers}
        assert {"norm_ratio", "io_cosine", "entropy", "top_token_id"} <= set(wanted)
        for name, values in wanted.items():
            given = np.asarray(layers[name])[:n]
            if "token" in name or "rank" in name:
                assert (given == values[begin:]).mean() > 0.99, name  # equal logits may change places
            else:
                np.testing.assert_allclose(given, values[begin:], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def test_every_number_is_that_of_a_plain_pass(family, folder_of):
    """States that vLLM hands out, and states that blocks carry; of generated tokens, and of prompts."""
    folder = folder_of(family)
    extras = [{"trace": "generated"}, {"trace": "all"}, {}, {"strategy": "last", "trace": "all"}] * 2
    with engine(folder, TRACED) as llm:
        found = answers(llm, PROMPTS, extras)
        untraced = answers(llm, PROMPTS, [{}] * 8)
    with engine(folder, {"strategy": "valley", "window": 4}) as llm:
        assert answers(llm, PROMPTS, [{}] * 8).token_ids == untraced.token_ids
    assert [found.token_ids[row] for row in (0, 1, 2, 4, 5, 6)] == [
        untraced.token_ids[row] for row in (0, 1, 2, 4, 5, 6)
    ]
    assert_traced(found, folder, PROMPTS, (0, 4))
    assert_traced(found, folder, PROMPTS, (1, 3, 5, 7), first=0)
    assert all("layers" not in found.records[row] for row in (2, 6))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"max_num_batched_tokens": 24, "max_num_seqs": 16}, id="prompts in parts"),
        pytest.param({"num_gpu_blocks_override": 5, "block_size": 32}, id="preempted"),
        pytest.param({"enable_prefix_caching": True, "max_num_seqs": 16}, id="cached prefixes"),
        pytest.param({"enforce_eager": False, "max_num_seqs": 16}, id="compiled"),
    ],
)
def test_traces_are_complete_whatever_vllm_does_with_requests(given, folder_of):
    folder, prompts = folder_of("qwen3"), ragged(12)
    extras = [{"trace": "all"}, {"trace": "generated"}] * 6
    with engine(folder, TRACED, **given) as llm:
        for _ in range(2):
            found = answers(llm, prompts, extras)
            assert_traced(found, folder, prompts, range(0, 12, 2), first=0)
            assert_traced(found, folder, prompts, range(1, 12, 2))


def test_layers_are_read_through_a_lens_and_the_strategy_too(folder_of, tmp_path):
    folder = folder_of("qwen3")
    model = ll.load(folder, dtype="float32")
    draws = torch.Generator().manual_seed(1)
    width = model.d_model
    weights = {layer: torch.randn(width, width, generator=draws) / width**0.5 for layer in range(model.n_layers)}
    biases = {layer: torch.randn(width, generator=draws) for layer in weights}
    path = tmp_path / "lens.safetensors"
    write_lens(path, Stored("tuned", weights, biases, width, model.n_layers, made_for(model)))
    transport = open_lens(f"tuned:{path}", model)
    with engine(folder, TRACED | {"lens": f"tuned:{path}"}) as llm:
        found = answers(llm, PROMPTS, [{"trace": "all"}] * 8)
    assert_traced(found, folder, PROMPTS, range(8), first=0, transport=transport)
    assert_same(found, ours(folder, PROMPTS, ll.Valley(window=4), transport=transport), range(8))
    through_none = ours(folder, PROMPTS, ll.Valley(window=4))
    assert through_none.outputs != found.token_ids, "the lens changes what is emitted"


def test_an_id_that_two_requests_have_one_after_the_other_or_at_once(folder_of):
    with engine(folder_of("qwen3"), TRACED) as llm:
        for prompt, n_tokens in ((PROMPTS[0], 12), (PROMPTS[1], 4)):
            unfetched(llm, [prompt], {"id": "again", "trace": "all"}, n_tokens)
        unfetched(llm, PROMPTS[:2], {"id": "at once", "trace": "all"}, 4)
        records = llm.collective_rpc("layerlens_take")[0]
        unfetched(llm, PROMPTS[:1], {"id": "at once", "trace": "all"}, 4)
        later = llm.collective_rpc("layerlens_take")[0]
    assert set(records) == {"again", "at once"}
    assert records["again"]["place"][:4] == [0, 1, 2, 3]
    assert len(records["again"]["place"]) <= 5
    assert len(unpacked(records["again"]["layers"])["position"]) <= len(PROMPTS[1]) + 4
    assert set(records["at once"]) == {"error"}
    assert later["at once"]["place"][:4] == [0, 1, 2, 3]


def test_every_rank_forgets_what_was_taken(folder_of):
    """A rank that is not the first has the same traces, and nobody else would ask it for them."""
    with engine(folder_of("qwen3"), TRACED) as llm:
        unfetched(llm, PROMPTS[:1], {"id": "a", "trace": "all"}, 4)
        second = SimpleNamespace(rank=1, vllm_config=llm.llm_engine.vllm_config)
        assert _take(second, ["a"]) == {}
        assert llm.collective_rpc("layerlens_take")[0] == {}


def unfetched(llm, prompts, options, n_tokens):
    """Requests with these options, whose records stay where they are."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=n_tokens, ignore_eos=True, extra_args={"layerlens": options})
    llm.generate([{"prompt_token_ids": list(one)} for one in prompts], params, use_tqdm=False)
