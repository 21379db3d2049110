"""Records over HTTP. vLLM's server loads this where VLLM_PLUGINS names layerlens."""

from typing import Any

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
                return of_rank[id]
        raise HTTPException(
            404,
            f"layerlens has no records of {id!r}; they are kept for requests with a layerlens_id, and given out once",
        )
