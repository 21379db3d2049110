"""Decoding from another layer inside vLLM. vLLM finds this package by the entry points of pyproject.toml.

It acts only in an engine that is started with `--additional-config '{"layerlens": {"strategy": "valley"}}'`. In every
other engine the model's class, its graphs and its logits are vLLM's own.

    plugin      what is put into vLLM's registries when a process of vLLM starts
    checks      which engines are refused, before they start
    options     what an engine and a request can ask for
    model       a model's class, whose states of some layers come out beside the last one
    serving     the logits of each step, by each request's strategy
    head        vLLM's own head as a `Head`
    rows        which request each row of a step belongs to, in both of vLLM's model runners
    taps        states of layers of a model that does not hand them out
    store       what was decided about each token, until it is fetched
    traces      what each layer did to each token, likewise
    http        records over HTTP
    offline     an engine that answers many prompts
    backend     what `generate`, `trace` and `ablate` get from such an engine
"""


def register() -> None:
    """What vLLM calls in each of its processes."""
    from layerlens.engines.vllm.plugin import install

    install()
