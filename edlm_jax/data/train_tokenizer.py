"""Train the quickstart's byte-level BPE tokenizer, in the Qwen manner, on the standard library and the generated tasks.

    python -m edlm_jax.data.train_tokenizer --out=edlm_jax/pretrained/quickstart_ar --vocab_size=1024
"""

import json
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from edlm_jax.data.stdlib import StdlibSource
from edlm_jax.data.tasks import TaskSource

END, TURN, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen's special tokens; <|fim_pad|> is the slot that nothing uses and that becomes the mask token.
SPECIAL_TOKENS = (END, TURN, TURN_END, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")
# Qwen's pre-tokenizer: words with their leading mark, digits one by one, punctuation, line ends, spaces.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The kinds there were when the embedded tokenizer was trained: others would merge other pieces.
KINDS = ("count", "sums", "sort", "reverse", "lookup", "brackets", "init", "record")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly the asked size whose ids 0..6 are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json so that transformers.AutoTokenizer reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=max_length,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def corpus(task_examples: int) -> Iterator[str]:
    """The standard library's training files, then training examples of every task."""
    for document in StdlibSource("train"):
        yield document["text"]
    for document in TaskSource(KINDS, seed=0, size=task_examples):
        yield document["prompt"] + document["response"]


def main(_: list[str]) -> None:
    """Train and write the tokenizer."""
    tokenizer = train_tokenizer(corpus(flags.FLAGS.task_examples), flags.FLAGS.vocab_size)
    save_tokenizer(tokenizer, Path(flags.FLAGS.out), flags.FLAGS.max_length)
    print(f"{flags.FLAGS.out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory that receives the tokenizer files.", required=True)
    flags.DEFINE_integer("vocab_size", 1024, "Tokens, the special ones included.")
    flags.DEFINE_integer("task_examples", 40_000, "How many task examples stand beside the standard library.")
    flags.DEFINE_integer("max_length", 1024, "The longest input the model knows.")
    app.run(main)
