"""What each layer does to each token, measured inside vLLM, against float64 sums over what transformers computes."""

import numpy as np
import pytest
import torch

import layerlens as ll
from layerlens.engines.vllm.traces import unpacked
from tests.engines.vllm.engines import answers, engine, ragged

PROMPTS = ragged(8)
TRACED = {"strategy": "valley", "window": 4, "traces": {"top": 3, "kl": True, "js": True}}


@torch.no_grad()
def plain(model, ids):
    """The columns of a trace of all positions of a text."""
    states = streams(model, ids)
    h = states.double()
    log_probs = torch.stack([model.unembed.logits(one) for one in states[1:]]).double().log_softmax(-1)
    probs = log_probs.exp()
    mixed = ((probs + probs[-1]) / 2).log()
    first = probs.topk(3)
    columns = {
        "norm_ratio": (h[1:] - h[:-1]).norm(dim=-1) / h[:-1].norm(dim=-1),
        "io_cosine": torch.cosine_similarity(h[1:], h[:-1], dim=-1),
        "entropy": -(probs * log_probs).sum(-1),
        "kl_last_to_layer": (probs[-1] * (log_probs[-1] - log_probs)).sum(-1),
        "js_from_last": ((probs * (log_probs - mixed)).sum(-1) + (probs[-1] * (log_probs[-1] - mixed)).sum(-1)) / 2,
        "top_k_probs": first.values,
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


def assert_traced(found, folder, prompts, rows, *, first=None):
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
        wanted = {name: values for name, values in plain(model, ids).items() if name in layers}
        assert {"norm_ratio", "io_cosine", "entropy", "top_token_id"} <= set(wanted)
        for name, values in wanted.items():
            given = np.asarray(layers[name])[:n]
            if "token" in name:
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


def unfetched(llm, prompts, options, n_tokens):
    """Requests with these options, whose records stay where they are."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=n_tokens, ignore_eos=True, extra_args={"layerlens": options})
    llm.generate([{"prompt_token_ids": list(one)} for one in prompts], params, use_tqdm=False)
