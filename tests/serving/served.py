"""A tiny model that says bytes, and what a server needs beside it."""

import dataclasses
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from edlm_jax.decoding import Decoder, Engine, Mode
from edlm_jax.pretrained import Text
from edlm_jax.serving.loop import Loop
from edlm_jax.serving.metrics import Metrics
from tests.chain import byte_tokenizer
from tests.data.conftest import CHAT_TEMPLATE, END
from tests.decoding.tiny import make_model

NAME, SLOTS, QUEUE, COLUMNS = "tiny", 3, 4, 64
ENDS = (256, 20, 21, 22)  # the template's end of a turn, and three letters so that rows do end


def make_decoder(seed: int = 0) -> Decoder:
    """Of random weights: its tokens vary, characters are cut in half among them."""
    model = make_model(vocab_size=259, seed=seed)
    model.spec = replace(model.spec, conversion=dataclasses.replace(model.spec.conversion, mask_token_id=258))
    return Decoder(model)


def make_text() -> Text:
    """A byte a token, with a chat template."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(END, "<|im_start|>", "<|mask|>"))
    tokenizer.chat_template = CHAT_TEMPLATE
    return Text(tokenizer, ENDS)


def make_loop(decoder: Decoder, mode: Mode | None = None, queue: int = QUEUE) -> Loop:
    """A loop that has not begun."""
    engine = Engine(decoder, mode, slots=SLOTS, least=SLOTS, columns=COLUMNS)
    return Loop(engine, make_text(), Metrics(), queue)
