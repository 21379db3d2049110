"""Every private name of another package that `layerlens.compat` uses is there and means what it is taken for.

And no other module uses one: what is private is told from the source.
"""

import ast
import logging
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.specifiers import SpecifierSet
from torch import nn

from layerlens import compat
from layerlens.models import tiny_model, tiny_tokenizer
from tests.thorough import thorough

# --- torch: tensors and products ---


class Pair(torch.Tensor):
    """A tensor that stands for two."""

    @staticmethod
    def __new__(cls, left, right):
        return torch.Tensor._make_wrapper_subclass(cls, left.shape, dtype=left.dtype)

    def __init__(self, left, right):
        self.left, self.right = left, right

    def __tensor_flatten__(self):
        return ["left", "right"], None

    @staticmethod
    def __tensor_unflatten__(inner, _, size, stride):
        return Pair(inner["left"], inner["right"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


def test_modes_and_transforms_watch_operations():
    seen = []

    def look(x):
        seen.append(compat.is_watched())
        return x * 2

    look(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 2))
    torch.func.grad(lambda x: look(x).sum())(torch.ones(2))
    with compat.shapes_only():
        look(torch.ones(2))
    assert seen == [False, True, True, True]


def test_a_tensor_that_stands_for_others_is_told():
    one = torch.ones(2)
    assert compat.is_wrapper(Pair(one, one))
    assert not any(compat.is_wrapper(thing) for thing in (one, nn.Parameter(one), "no tensor"))


def test_changes_in_place_are_counted():
    values = torch.ones(3)
    before = compat.times_written(values)
    values[1:].mul_(2)
    assert compat.times_written(values) == before + 1
    _ = values + 1
    assert compat.times_written(values) == before + 1


def test_a_pass_of_shapes_holds_no_numbers_and_says_why_it_failed():
    import torch._subclasses.fake_tensor as home

    with compat.shapes_only():
        product = nn.Linear(3, 5, device="meta")(torch.ones(2, 3, device="meta"))
        mixed = torch.ones(2, 3) @ torch.ones(3, 4)
    assert (product.shape, product.device.type, mixed.shape) == ((2, 5), "meta", (2, 4))
    assert isinstance(mixed, home.FakeTensor)
    real = torch.ones(3, 4)
    with compat.shapes_only():
        assert (torch.ones(2, 3) @ real).shape == (2, 4)  # which a mode of its own would refuse
    assert logging.getLogger(compat.SHAPES_ONLY_LOG) is home.log


@pytest.fixture
def onednn():
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux alone lists what a processor can do")
def test_a_processor_that_multiplies_bfloat16_is_told(onednn):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    assert compat.has_fast_bfloat16() == ("avx512_bf16" in flags or "amx_tile" in flags)


def needs_bfloat16() -> None:
    """Skip where oneDNN has no products of bfloat16: layerlens never asks for them there."""
    if not compat.onednn_multiplies(torch.bfloat16):
        pytest.skip("oneDNN does not multiply bfloat16 with this processor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_onednn_multiplies_is_told(onednn, dtype):
    states, weight = torch.ones(7, 32, dtype=dtype), torch.ones(90, 32, dtype=dtype)
    try:
        compat.onednn_product(states, weight)
    except RuntimeError:
        assert not compat.onednn_multiplies(dtype)
    else:
        assert compat.onednn_multiplies(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_by_onednn_is_the_product(onednn, dtype):
    if dtype == torch.bfloat16:
        needs_bfloat16()
    states, weight = (torch.randn(n, 32, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (7, 90))
    product = compat.onednn_product(states, weight)
    assert (product.shape, product.dtype) == ((7, 90), dtype)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
    torch.testing.assert_close(product.double(), states.double() @ weight.double().t(), **tolerance)


def test_a_weight_in_onednns_own_layout_multiplies_like_itself(onednn):
    needs_bfloat16()
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    states = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    packed = compat.onednn_layout(weight, len(states))
    assert packed.layout == torch._mkldnn
    torch.testing.assert_close(compat.onednn_product(states, packed), compat.onednn_product(states, weight))


# --- torch: modules ---


def test_children_are_those_that_a_module_holds_empty_places_and_repetitions_too():
    module, inner = nn.Module(), nn.Linear(2, 2)
    module.first, module.empty, module.second = inner, None, inner
    module.register_module("none", None)
    assert dict(compat.children_of(module)) == {"first": inner, "second": inner, "none": None}


def test_tensors_are_a_modules_own():
    module = nn.BatchNorm1d(3)
    module.inner = nn.Linear(3, 3)
    expected = [module.weight, module.bias, module.running_mean, module.running_var, module.num_batches_tracked]
    assert [id(tensor) for tensor in compat.tensors_of(module)] == [id(tensor) for tensor in expected]


def test_hooks_are_those_that_run_when_a_module_is_called():
    module, ran = nn.Linear(2, 2), []

    def before(*_):
        ran.append(before)

    def after(*_):
        ran.append(after)

    assert compat.hooks_of(module) == ()
    handles = [module.register_forward_hook(after), module.register_forward_pre_hook(before)]
    module(torch.ones(1, 2))
    assert compat.hooks_of(module) == tuple(ran) == (before, after)
    for handle in handles:
        handle.remove()
    assert compat.hooks_of(module) == ()


def test_hooks_of_all_modules_are_those_that_run_with_any():
    ran = []

    def before(*_):
        ran.append(before)

    def after(*_):
        ran.append(after)

    known = compat.hooks_of_all()
    handles = [
        nn.modules.module.register_module_forward_hook(after),
        nn.modules.module.register_module_forward_pre_hook(before),
    ]
    try:
        nn.Identity()(torch.ones(1))
        assert [hook for hook in compat.hooks_of_all() if hook not in known] == ran == [before, after]
    finally:
        for handle in handles:
            handle.remove()
    assert compat.hooks_of_all() == known


def test_what_was_compiled_is_told_from_what_it_was_made_of():
    def double(x):
        return 2 * x

    compiled = torch.compile(double, backend="eager")
    assert compiled is not double
    assert compat.written_forward(compiled) is compat.written_forward(double) is double


def test_a_module_that_is_compiled_in_place_is_told():
    module = nn.Linear(2, 2)
    assert not compat.is_compiled_in_place(module)
    module.compile(backend="eager")
    assert compat.is_compiled_in_place(module)


def test_a_compiled_wrapper_keeps_its_module():
    module = nn.Linear(2, 2)
    compiled = torch.compile(module, backend="eager")
    assert compiled is not module
    assert compat.children_of(compiled)[compat.COMPILED_ATTRIBUTE] is module


# --- vLLM ---


def test_the_logits_of_a_rank_stay_there_while_that_is_asked_for():
    home = pytest.importorskip("vllm.model_executor.layers.logits_processor")
    processor = home.LogitsProcessor.__new__(home.LogitsProcessor)
    nn.Module.__init__(processor)
    logits = torch.ones(2, 3)
    with compat.left_in_ranks(processor):
        assert processor._gather_logits(logits) is logits
    assert processor._gather_logits.__func__ is home.LogitsProcessor._gather_logits


# --- transformers ---


def test_a_model_that_generate_compiled_is_told():
    from transformers import CompileConfig

    hf = tiny_model("llama")
    assert not compat.is_compiled_by_generate(hf)
    hf.get_compiled_call(CompileConfig(backend="eager"))
    assert compat.is_compiled_by_generate(hf)


@pytest.mark.parametrize(("family", "grows"), [("llama", True), ("gemma3_text", True), ("rwkv", False)])
def test_caches_that_grow_are_for_models_that_take_them(family, grows):
    assert compat.can_grow_a_cache(tiny_model(family)) == grows


def test_whether_windows_rewind_depends_on_the_version():
    """A window that records its past hands out what its mask is for, however often it is read before `crop`."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    layer = DynamicSlidingWindowLayer(sliding_window=3)
    layer.activate_past_recording()
    layer.update(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
    for _ in range(2):
        n_masked, _ = layer.get_mask_sizes(1)
        keys, _ = layer.update(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert compat.windows_rewind() == (keys.shape[2] == n_masked)


@pytest.mark.parametrize(("family", "fills"), [("llama", True), ("gemma3_text", True), ("gpt_neo", False)])
def test_static_caches_are_for_models_that_take_them(family, fills):
    from transformers import StaticCache

    hf, ids = tiny_model(family), torch.tensor([[5, 6, 7, 8]])
    assert compat.can_fill_a_static_cache(hf) == fills
    if fills:
        cache = StaticCache(config=hf.config, max_cache_len=4)
        with torch.no_grad():
            steps = [hf(input_ids=one, past_key_values=cache).logits for one in ids.split(2, 1)]
            torch.testing.assert_close(torch.cat(steps, 1), hf(input_ids=ids, use_cache=False).logits)


def test_experts_are_computed_otherwise_while_a_gpu_decodes():
    """Where there is no GPU, a model without numbers stands for one that is not on the CPU."""
    hf = tiny_model("qwen3_moe").to("meta")
    hf.set_experts_implementation("grouped_mm")
    before = set(hf.get_experts_implementation().values())
    with compat.decoding_fast(hf):
        assert set(hf.get_experts_implementation().values()) == {"batched_mm"}
    assert set(hf.get_experts_implementation().values()) == before == {"grouped_mm"}
    with compat.decoding_fast(object()):  # an older transformers
        pass


def test_the_processors_are_those_that_generate_would_run():
    """Fewer new tokens than asked for, and a repeated token: the first needs the end token as a tensor."""
    from transformers import GenerationConfig

    hf, prompt, end = tiny_model("llama"), [5, 6, 7], 9
    config = GenerationConfig(
        min_new_tokens=4, repetition_penalty=2.0, eos_token_id=[end], max_length=10, do_sample=False
    )
    processors = compat.processors_of(hf, config, prompt, torch.device("cpu"))
    for n_new, bans in ((0, True), (3, True), (4, False)):
        text = torch.tensor([[*prompt, *[8] * n_new]])
        scores = processors(text, torch.ones(1, 307))[0]
        repeated = {*prompt, *[8] * bool(n_new)}
        expected = torch.tensor([0.5 if token in repeated else 1.0 for token in range(307)])
        if bans:
            expected[end] = -torch.inf
        assert torch.equal(scores, expected)
    nothing = GenerationConfig(max_length=10)
    assert len(compat.processors_of(hf, nothing, prompt, torch.device("cpu"))) == 0


def test_chat_templates_are_read_with_the_tags_that_transformers_adds():
    import jinja2

    template = "{% generation %}{{ content }}{% endgeneration %}"
    with pytest.raises(jinja2.TemplateError):
        jinja2.Environment().parse(template)
    tree = compat.chat_environment(template).parse(template)
    assert jinja2.meta.find_undeclared_variables(tree) == {"content"}
    with pytest.raises(jinja2.TemplateError):
        compat.chat_environment("{% if %}")


def test_a_model_is_built_from_its_config():
    from transformers import AutoModelForCausalLM

    hf = tiny_model("llama")
    for kind in (AutoModelForCausalLM, type(hf)):
        built = compat.built_from(kind, hf.config, dtype=torch.bfloat16)
        assert (type(built), built.dtype) == (type(hf), torch.bfloat16)
        assert [parameter.shape for parameter in built.parameters()] == [one.shape for one in hf.parameters()]


def test_the_attention_is_what_the_model_was_set_to():
    hf = tiny_model("llama")
    for name in ("eager", "sdpa"):
        hf.set_attn_implementation(name)
        assert compat.attention_of(hf.config) == name
    assert compat.attention_of(object()) is None


def test_a_config_tells_the_model_and_not_where_it_was_read(tmp_path):
    from transformers import AutoConfig

    config = tiny_model("llama").config
    config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.name_or_path == str(tmp_path)
    told = compat.told_by_config(config)
    assert str(tmp_path) not in map(str, told.values())
    left_out = {key: value for key, value in config.to_dict().items() if key not in told}
    assert set(left_out) == {"_name_or_path", "transformers_version"}
    assert left_out["_name_or_path"] == str(tmp_path)


def test_the_tensors_of_a_gguf_file_are_those_that_were_written(tmp_path):
    """Also of a type that transformers leaves packed for no architecture."""
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "some.gguf", "llama")
    writer.add_context_length(16)
    writer.add_tensor("plain", np.zeros((3, 5), np.float32))
    kind = gguf.GGMLQuantizationType.TQ1_0
    packed = gguf.quants.quantize(np.zeros((2, 256), np.float32), kind)
    writer.add_tensor("packed", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = [(tuple(shape), kind) for shape, kind in compat.gguf_tensors(str(tmp_path / "some.gguf"))]
    assert found == [((3, 5), gguf.GGMLQuantizationType.F32), ((2, 256), kind)]


def test_arrays_of_a_gguf_file_are_read_as_gguf_reads_them(tmp_path):
    import gguf

    arrays = {
        "texts": ["a", "", "π ⏎", "word" * 90],
        "whole": [3, -1, 2**20],
        "real": [0.5, -2.25],
        "true": [True, False],
        "one": [7],
        "deep": [[1, 2], [3, 4]],
    }
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in arrays.items():
        writer.add_array(name, values)
    writer.add_string("text", "after them")
    writer.add_tensor("weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def told(reader):
        return {
            name: (field.types, [bytes(field.parts[place]) for place in field.data])
            for name, field in reader.fields.items()
        }, [(tensor.name, tensor.data.tolist()) for tensor in reader.tensors]

    ours, theirs = compat.gguf_reader()(path), gguf.GGUFReader(path)
    assert told(ours) == told(theirs)
    assert {"texts", "deep"} < set(ours.fields)
    path.write_bytes(path.read_bytes()[: theirs.fields["texts"].offset + 60])
    for reader in (compat.gguf_reader(), gguf.GGUFReader):
        with pytest.raises((IndexError, ValueError, struct.error)):
            reader(path)


def test_functions_take_the_place_of_transformers_kernel(monkeypatch):
    from types import SimpleNamespace

    from transformers.integrations.gguf import kernels

    names = ("mul_mat_vec", "mul_mat_id", "dequantize", "get_rows")
    monkeypatch.setattr(kernels, "_gguf_kernel", None)
    given = SimpleNamespace(**{name: lambda *_, name=name: name for name in names}, GEMV_TYPES={8})
    compat.set_gguf_kernel(given)
    kernel = kernels.get_gguf_kernel()
    assert (kernel.supports(8), kernel.supports(2)) == (True, False)
    assert kernels.mul_mat_vec(None, None, 8, 1) == "mul_mat_vec"


# --- accelerate, bitsandbytes, nnsight, TransformerLens ---


def test_accelerates_hook_is_found_where_it_was_put():
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    module, hook = nn.Linear(2, 2), ModelHook()
    assert compat.mover_of(module) is None
    add_hook_to_module(module, hook)
    assert compat.mover_of(module) is hook
    remove_hook_from_module(module)
    assert compat.mover_of(module) is None


def test_bitsandbytes_says_what_its_products_cast():
    functions = pytest.importorskip("bitsandbytes.autograd._functions")
    assert functions.logger is logging.getLogger(compat.BITSANDBYTES_LOG)


def test_llvmlites_library_has_no_attributes_and_still_compiles():
    pytest.importorskip("llvmlite")
    from llvmlite.binding import ffi

    compat.give_llvmlite_attributes()
    assert vars(ffi.lib) == {}
    assert callable(ffi.lib.LLVMPY_GetVersionInfo)


def test_nnsights_model_holds_transformers_and_tells_its_edits():
    import beartype.door  # noqa: F401  # what nnsight adds to every object would keep it from being imported

    pytest.importorskip("nnsight")
    from nnsight.modeling.transformers import TransformersModel

    hf = tiny_model("llama")
    lm = TransformersModel(hf, tokenizer=tiny_tokenizer(), task="text-generation")
    assert compat.module_in(lm) is hf
    assert not any(compat.has_edits(envoy) for envoy in lm.modules())
    with lm.edit(inplace=True):
        lm.model.layers[1].output = lm.model.layers[1].output * 2
    assert any(compat.has_edits(envoy) for envoy in lm.modules())
    lm.clear_edits()
    assert not any(compat.has_edits(envoy) for envoy in lm.modules())


def test_a_bridge_whose_weights_were_folded_is_told():
    sources = pytest.importorskip("transformer_lens.model_bridge.sources")
    for options, processed in (({}, True), ({"no_processing": True}, False)):
        hf = tiny_model("llama")
        bridge = sources.build_bridge_from_module(
            hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name="llama"
        )
        assert not compat.has_processed_weights(bridge)
        bridge.enable_compatibility_mode(disable_warnings=True, **options)
        assert compat.has_processed_weights(bridge) == processed


# --- inspect ---


@thorough
def test_what_inspect_prints_as_a_sentence_is_told_from_other_errors(tmp_path):
    pytest.importorskip("inspect_ai")
    task = "from inspect_ai import Task, task\n@task\ndef mine():\n    {line}\n"
    shown = {}
    for name, line in (
        ("ours", "from layerlens import compat; raise compat.inspect_refusal()('a sentence')"),
        ("other", "raise ValueError('a sentence')"),
    ):
        (tmp_path / f"{name}.py").write_text(task.format(line=line))
        command = [sys.executable, "-m", "inspect_ai", "eval", f"{name}.py", "--model", "mockllm/model"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert done.returncode != 0
        shown[name] = done.stdout + done.stderr
    assert issubclass(compat.inspect_refusal(), Exception)
    assert all("a sentence" in said for said in shown.values())
    assert "Traceback" in shown["other"]
    assert "Traceback" not in shown["ours"]


def test_the_item_that_inspect_asks_is_known(tmp_path):
    pytest.importorskip("inspect_ai")
    (tmp_path / "asked.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.solver import solver\n"
        "from layerlens import compat\n"
        "@solver\n"
        "def tells():\n"
        "    async def solve(state, generate):\n"
        "        print('asked', compat.inspect_item(), flush=True)\n"
        "        return state\n"
        "    return solve\n"
        "@task\n"
        "def mine():\n"
        "    return Task(dataset=[Sample(input='a', id='one'), Sample(input='b', id=7)], solver=tells(), epochs=2)\n"
    )
    command = [sys.executable, "-m", "inspect_ai", "eval", "asked.py", "--model", "mockllm/model", "--display", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    told = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    assert sorted(told) == [f"asked ('{item}', {epoch})" for item in ("7", "one") for epoch in (1, 2)], done.stderr
    assert compat.inspect_item() is None


def test_what_inspect_keeps_of_a_log_that_it_has_not_written_is_found(tmp_path):
    database = pytest.importorskip("inspect_ai.log._recorders.buffer.database")
    assert compat.inspect_buffers(tmp_path / "logs") == []
    buffer = database.SampleBufferDatabase(str(tmp_path / "logs" / "one.eval"), create=True)
    elsewhere = database.SampleBufferDatabase(str(tmp_path / "more" / "one.eval"), create=True)
    try:
        found = compat.inspect_buffers(tmp_path / "logs")
        assert found == [buffer.db_path]
        assert found[0].name == f"one.eval.{os.getpid()}.db"
    finally:
        buffer.cleanup()
        elsewhere.cleanup()


# --- nowhere else ---

ROOT = Path(__file__).resolve().parents[1] / "layerlens"
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make"}  # of named tuples
OURS = "_layerlens"  # what layerlens itself puts on others' objects begins so


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED and not name.startswith(OURS)


def own_members(tree: ast.AST) -> set[str]:
    """Private names that the classes of a module give to themselves or their objects."""
    found = set()
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(owner):
            if isinstance(node, ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
    return found


def private_names(tree: ast.AST) -> Iterator[str]:
    """What a module uses that begins with an underscore and that no class of its own has: as an attribute, by import,
    or as a text that names an attribute or a module."""
    own = own_members(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] != "layerlens":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split(".") if is_private(part))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if len(parts) > 1 and all(part.isidentifier() for part in parts):
                yield from (part for part in parts if is_private(part))
        yield from named_by_text(node)


def named_by_text(node: ast.AST) -> Iterator[str]:
    """Attributes that `getattr`, `vars(x)[...]`, `"..." in vars(x)` and their like name by a text."""
    texts: list[ast.expr] = []
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = node.args if name in ("getattr", "hasattr", "setattr", "delattr", "get", "pop", "attrgetter") else []
    elif isinstance(node, ast.Subscript):
        texts = [node.slice]
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        texts = [node.left]
    for text in texts:
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and is_private(text.value):
            yield text.value


def found_in(root: Path) -> set[tuple[str, str]]:
    paths = (path for path in root.rglob("*.py") if path != root / "compat.py")
    trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    return {(name, private) for name, tree in trees.items() for private in private_names(tree)}


@pytest.mark.parametrize(
    "package",
    ["accelerate", "bitsandbytes", "gguf", "llvmlite", "nnsight", "torch", "transformer-lens", "transformers", "vllm"],
)
def test_the_versions_are_bounded_and_the_installed_one_is_within(package):
    text = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.search(rf'"{package}(>=[^"<]*,<[^";]*)', text)
    assert bounds, "no upper bound"
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    assert SpecifierSet(bounds[1]).contains(installed, prereleases=True)


def test_no_other_module_uses_a_private_name():
    assert found_in(ROOT) == set()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("model._modules", {"_modules"}),
        ("from torch._C import _functorch", {"_C", "_functorch"}),
        ("import torch._dynamo.config", {"_dynamo"}),
        ("torch.ops.mkldnn._linear_pointwise(a, b)", {"_linear_pointwise"}),
        ("getattr(hf, '_compiled_call', None)", {"_compiled_call"}),
        ("'_hf_hook' in vars(module)", {"_hf_hook"}),
        ("vars(module).get('_hf_hook')", {"_hf_hook"}),
        ("log = logging.getLogger('torch._subclasses.fake_tensor')", {"_subclasses"}),
        ("class Own:\n    def __init__(self):\n        self._rows = 1\none._rows", set()),
        ("row._asdict(), __version__, frame['entropy_low'], hf._layerlens_decoding", set()),
        ("def later():\n    from layerlens.models.kinds import _kinds", set()),
    ],
)
def test_a_private_name_is_found_however_it_is_written(tmp_path, line, names):
    (tmp_path / "module.py").write_text(line, encoding="utf-8")
    assert found_in(tmp_path) == {("module.py", name) for name in names}


def test_every_private_name_of_compat_has_a_function_that_a_test_calls():
    """A name that is added without a test is missed here."""
    home, tests = (ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "compat.py", Path(__file__)))
    public = {node.name for node in home.body if isinstance(node, ast.FunctionDef)}
    public |= {node.id for node in ast.walk(home) if isinstance(node, ast.Name) and node.id.isupper()}
    used = {
        node.attr
        for node in ast.walk(tests)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "compat"
    }
    assert public - used == set()
