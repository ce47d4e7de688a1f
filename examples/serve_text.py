"""A pruned language model answers over HTTP, word by word, packed for the machine it runs on: docs/guide/language-models.md#serving

MODEL=runs/smol50 uvicorn --app-dir examples serve_text:app
curl -N localhost:8000/generate -H 'Content-Type: application/json' -d '{"prompt": "Gravity is"}'
"""

import os
from collections.abc import Iterator
from threading import Event, Lock, Thread
from typing import Annotated

import torch
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from transformers import StoppingCriteriaList, TextIteratorStreamer

import truesparse as ts
from truesparse.language import language_model

opened = language_model(os.environ.get("MODEL", "smollm2"))
ts.pack_layers(opened.model, values="bfloat16")
one_at_a_time = Lock()  # two answers side by side would each take more than twice as long: both want the same memory
app = FastAPI(title="Text")


class Prompt(BaseModel):
    prompt: Annotated[str, Field(min_length=1, max_length=10_000)]
    tokens: Annotated[int, Field(ge=1, le=1024)] = 64


@app.post("/generate")
def generate(request: Prompt) -> StreamingResponse:
    return StreamingResponse(words(request), media_type="text/plain; charset=utf-8")


def words(request: Prompt) -> Iterator[str]:
    """What comes after the prompt, as it is made. Whoever goes away stops it."""
    given = opened.tokenizer(request.prompt, return_tensors="pt")
    streamer, gone = TextIteratorStreamer(opened.tokenizer, skip_prompt=True, skip_special_tokens=True), Event()
    failed: list[Exception] = []
    until = StoppingCriteriaList([lambda ids, scores, **_: torch.full((len(ids),), gone.is_set())])

    def make() -> None:
        try:
            with torch.inference_mode():
                end = opened.tokenizer.eos_token_id
                opened.model.generate(**given, max_new_tokens=request.tokens, streamer=streamer, stopping_criteria=until, pad_token_id=end)
        except Exception as error:
            failed.append(error)
            streamer.end()

    with one_at_a_time:
        making = Thread(target=make)
        making.start()
        try:
            yield from streamer
        finally:
            gone.set()
            making.join()
    if failed:
        raise failed[0]  # the answer breaks off, and the server's log says why
