"""A saved network answers over HTTP, packed for the machine it runs on: docs/guide/deploy.md#serve-it

NETWORK=net.safetensors uvicorn --app-dir examples serve:app
"""

import os
from typing import Annotated

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import truesparse as ts
from truesparse.tasks import digits_mlp  # your own: whatever makes the network

Image = Annotated[list[Annotated[float, Field(ge=0, le=16)]], Field(min_length=64, max_length=64)]  # 8 x 8 pixels, row by row

torch.set_num_threads(1)  # requests already run side by side; before packing, which chooses for so many threads
network = ts.load(os.environ.get("NETWORK", "net.safetensors"), digits_mlp.model())  # its zeros are no connections to pack
fast = ts.pack(network, torch.zeros(1, 1, 8, 8))  # for requests of one image; others work too
app = FastAPI(title="Digits")


class Images(BaseModel):
    images: Annotated[list[Image], Field(min_length=1, max_length=256)]


@app.post("/predict")
def predict(request: Images) -> dict[str, list[list[float]]]:  # not async: so it runs in a thread of its own
    images = torch.tensor(request.images).view(-1, 1, 8, 8)
    with torch.inference_mode():
        return {"probabilities": fast((images - digits_mlp.MEAN) / digits_mlp.DEVIATION).softmax(1).tolist()}


@app.exception_handler(RequestValidationError)  # FastAPI's own repeats the input, which JSON cannot if it is NaN
def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse({"detail": [{"where": one["loc"], "what": one["msg"]} for one in error.errors()]}, 422)
