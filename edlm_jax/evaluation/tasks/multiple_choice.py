"""Multiple choice, by likelihood:

    {"question": "What do bees make?", "choices": ["honey", "milk", "wool"], "answer": 0}

The answer is the index of the right choice (the first is 0) or its text. A choice is read behind
"Question: ...\\nAnswer:", as lm-evaluation-harness has ARC's.
"""

from edlm_jax.data.sources import read_objects
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks.task import LikeliestChoice, Question, Task, get_field
from edlm_jax.pretrained.encode import encode_more, encode_text


def multiple_choice(tokenizer, path: str, num_samples: int = 32) -> Task:
    """The share of JSON lines whose likeliest choice a token is right; `num_samples`: of an estimate by diffusion."""
    questions = []
    for where, row in read_objects(path):
        choices, answer = get_field(row, "choices", list, where), get_field(row, "answer", (int, str), where)
        if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise InputError(f"choices of {where} must be texts, two or more")
        if isinstance(answer, str):
            answer = choices.index(answer) if answer in choices else -1
        if not 0 <= answer < len(choices):
            raise InputError(f"answer of {where} must be the index of a choice, 0 to {len(choices) - 1}, or its text")
        prompt = f"Question: {get_field(row, 'question', str, where)}\nAnswer:"
        tokens = tuple(encode_more(tokenizer, f" {choice.strip()}", prompt) for choice in choices)
        longest = max(map(len, tokens))
        questions.append(Question(encode_text(tokenizer, prompt), (tokens, answer), longest, "multiple_choice", where))
    return Task("multiple_choice", tuple(questions), LikeliestChoice(num_samples))
