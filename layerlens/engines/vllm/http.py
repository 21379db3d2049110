"""Records over HTTP. vLLM's server loads this where VLLM_PLUGINS names layerlens."""

import math
from typing import Any

from fastapi import FastAPI, HTTPException

from layerlens.engines.vllm.traces import unpacked


class Routes:
    """GET /v1/layerlens/records/ID: the records of a request, which are then forgotten."""

    name = "layerlens"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the route. vLLM asks for its `--api-key` at addresses that begin with /v1, and at no others."""
        app.add_api_route("/v1/layerlens/records/{id:path}", self.records, methods=["GET"])

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
                return for_json(of_rank[id])
        raise HTTPException(
            404,
            f"layerlens has no records of {id!r}; they are kept for requests with a layerlens_id, and given out once",
        )


def for_json(record: dict[str, Any]) -> dict[str, Any]:
    """A record with lists in place of arrays, and null in place of numbers that are NaN or infinite."""
    if "layers" in record:
        layers = {name: values.tolist() for name, values in unpacked(record["layers"]).items()}
        record = {**record, "layers": {name: _plain(values) for name, values in layers.items()}}
    return {**record, "values": _plain(record["values"])}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
