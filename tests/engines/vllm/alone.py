"""An engine in a process of its own, whose answers are written as JSON; vLLM's processes print what they like.

python alone.py OUT FOLDER PROMPTS EXTRAS GIVEN [--v2]

PROMPTS, EXTRAS and GIVEN are JSON: lists of token ids, options of layerlens for each of them, and arguments of the
engine with `traces`, which is of layerlens. With --v2 by Model Runner V2, whose kernels then run in Triton's
interpreter.
"""

import json
import os
import sys
from pathlib import Path

if "--v2" in sys.argv:
    # at the top, because vLLM's workers execute this file again
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1", TORCHDYNAMO_DISABLE="1")
    from triton.backends import backends

    class Driver:
        """A driver for processors without an accelerator: vLLM asks whether there is one."""

        @staticmethod
        def is_active() -> bool:
            return True

    class Backend:
        driver, compiler = Driver, None

    backends["cpu"] = Backend


def main() -> None:
    import numpy as np

    from tests.engines.vllm.engines import answers, engine

    out, folder, prompts, extras, given = *sys.argv[1:3], *map(json.loads, sys.argv[3:6])
    traces = given.pop("traces")
    with engine(folder, {"strategy": "valley", "window": 4, "traces": traces}, **given) as llm:
        config = llm.llm_engine.vllm_config
        found = answers(llm, prompts, extras, n_tokens=8)
        of_ranks = [len(one) for one in llm.collective_rpc("layerlens_take")]
        said = {"v2": config.use_v2_model_runner, "ranks": len(of_ranks), **found._asdict()}
        Path(out).write_text(json.dumps(said, default=np.ndarray.tolist))


if __name__ == "__main__":
    main()
