"""Records over HTTP. vLLM's server loads this where VLLM_PLUGINS names layerlens."""

import math
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException


class Routes:
    """GET /layerlens/records/ID: the records of a request, which are then forgotten."""

    name = "layerlens"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the route."""
        app.add_api_route("/layerlens/records/{id}", self.records, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the client of the engine, by which workers are asked."""
        self._engine = engine_client

    async def records(self, id: str) -> dict[str, Any]:
        """An entry for each token; see `Store.take`."""
        found: list[dict[str, dict[str, Any]]] = await self._engine.collective_rpc("layerlens_take", args=([id],))
        for of_rank in found:
            if id in of_rank:
                if "error" in of_rank[id]:
                    raise HTTPException(409, of_rank[id]["error"])
                plain: dict[str, Any] = for_json(of_rank[id])
                return plain
        raise HTTPException(
            404,
            f"layerlens has no records of {id!r}; they are kept for requests with a layerlens_id, and given out once",
        )


def for_json(value: Any) -> Any:
    """Dicts and lists of what JSON has; null for a number that is NaN or infinite."""
    if isinstance(value, dict):
        return {name: for_json(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [for_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
