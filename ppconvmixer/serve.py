"""A network behind HTTP, by FastAPI: a route that tells its health, and one that classifies the picture in the body."""

# Annotations are values here: FastAPI reads those of the routes.
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from . import __version__
from .errors import UserError
from .evaluate import no_number, top_k
from .transforms import decode, eval_transform

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .exported import Exported
    from .trained import Trained

MAX_BYTES = 16 << 20  # of a picture's file; a camera's JPEG has a few MiB
MAX_WAITING = 64  # requests that are sent or wait for the network; more are told to come again
MAX_SECONDS = 60  # for a picture to arrive


class Refusal(Exception):
    """A request that gets no answer: ``status`` says why to a program, ``args`` to a person."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def create_app(network: "Union[Trained, Exported]", engine: str = "auto", backend: str = "pil") -> "FastAPI":
    """Return the application; any ASGI server runs it.

    ``GET /health`` answers with model, engine and version. ``POST /predict`` takes the bytes of a picture and answers
    with the five most likely classes; 400 means that it is no picture, 408 that it took too long to arrive, 413 that it
    is too long, 500 that the network gives no numbers for it, 503 that too many wait.

    Raises:
        UserError: FastAPI is missing, or as ``network.engine``.
    """
    try:
        import fastapi
        import uvicorn  # noqa: F401  (one line about both)
    except ImportError as error:
        raise UserError("serving needs two packages; pip install fastapi uvicorn") from error
    from anyio import CapacityLimiter, to_thread

    runner, transform = network.engine(engine), eval_transform(network.input, backend)
    one_at_a_time = CapacityLimiter(1)  # a picture keeps all processors busy
    taken_in = 0
    app = fastapi.FastAPI(title="ppconvmixer", version=__version__)

    def classify(content: bytes) -> list[dict[str, Any]]:
        try:
            image = transform(decode(content, backend))
        except UserError as error:
            raise Refusal(400, str(error)) from error
        (classes,), (probabilities,) = top_k(runner(image[np.newaxis]))
        if not np.isfinite(probabilities).all():
            raise Refusal(500, str(no_number("this picture")))
        names = [network.classes[i] if network.classes else f"class {i}" for i in classes]
        found = zip(classes, names, probabilities)
        return [{"class": int(i), "name": name, "probability": float(p)} for i, name, p in found]

    @app.exception_handler(Refusal)
    async def refuse(_: fastapi.Request, refusal: Refusal) -> fastapi.responses.JSONResponse:
        headers = {408: {"Connection": "close"}, 503: {"Retry-After": "1"}}.get(refusal.status)
        return fastapi.responses.JSONResponse({"error": str(refusal)}, refusal.status, headers)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": network.name, "engine": runner.name, "version": __version__}

    @app.post("/predict")
    async def predict(request: fastapi.Request) -> dict[str, Any]:
        nonlocal taken_in
        if taken_in > MAX_WAITING:  # one of them is being classified
            raise Refusal(503, f"{MAX_WAITING} pictures wait already; try again")
        taken_in += 1  # from the first byte on: what comes slowly takes memory as well
        try:
            content = await _body(request)
            classes = await to_thread.run_sync(classify, content, limiter=one_at_a_time)
        finally:
            taken_in -= 1
        return {"model": network.name, "classes": classes}

    return app


async def _body(request: Any) -> bytes:
    """Read a body of at most ``MAX_BYTES``, whatever its header says of its length, in at most ``MAX_SECONDS``."""
    from anyio import fail_after
    from starlette.requests import ClientDisconnect

    content = bytearray()
    try:
        with fail_after(MAX_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise Refusal(413, f"the picture has more than {MAX_BYTES:,} bytes")
    except ClientDisconnect as error:
        raise Refusal(400, "the picture was cut off") from error
    except TimeoutError as error:
        raise Refusal(408, f"the picture did not arrive within {MAX_SECONDS} s") from error
    return bytes(content)
