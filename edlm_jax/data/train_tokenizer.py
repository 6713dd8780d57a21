"""Train the quickstart's byte-level BPE tokenizer, in the Qwen manner, on the standard library and the generated tasks.

    python -m edlm_jax.data.train_tokenizer --out=edlm_jax/pretrained/quickstart_ar --vocab_size=1024
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.data.tasks import TaskSource
from edlm_jax.pretrained.gguf.tokenizer import WAYS, byte_level

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen's special tokens; <|fim_pad|> is the slot that nothing uses and that becomes the mask token.
SPECIAL_TOKENS = (END, TURN, TURN_END, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
# The kinds there were when the embedded tokenizer was trained: others would merge other pieces.
KINDS = ("count", "sums", "sort", "reverse", "lookup", "brackets", "init", "record")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly the asked size whose ids 0..6 are the special tokens."""
    tokenizer = byte_level(models.BPE(), dataclasses.replace(WAYS["qwen2"], composed=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    how = dict(special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, **how))
    return tokenizer


def corpus(task_examples: int) -> Iterator[str]:
    """The standard library's training files, then training examples of every task."""
    yield from (document["text"] for document in StdlibSource("train"))
    yield from (task["prompt"] + task["response"] for task in TaskSource(KINDS, seed=0, size=task_examples))


def main(_: list[str]) -> None:
    """Train the tokenizer and write its files as transformers.AutoTokenizer reads them."""
    asked = flags.FLAGS
    tokenizer, directory = train_tokenizer(corpus(asked.task_examples), asked.vocab_size), Path(asked.out)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=asked.max_length)
    config |= dict(eos_token=END, pad_token=END, chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    print(f"{directory}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory that receives the tokenizer files.", required=True)
    flags.DEFINE_integer("vocab_size", 1024, "Tokens, the special ones included.")
    flags.DEFINE_integer("task_examples", 40_000, "How many task examples stand beside the standard library.")
    flags.DEFINE_integer("max_length", 1024, "The longest input the model knows.")
    app.run(main)
