"""HumanEval (arXiv 2107.03374) and files of its shape: a function to be completed, and a test of it.

    {"prompt": "def add(a, b):\\n", "entry_point": "add",
     "test": "def check(candidate):\\n    assert candidate(1, 2) == 3"}
"""

from edlm_jax.data.sources import read_objects
from edlm_jax.evaluation.tasks.task import PassesTests, Question, Task, get_field
from edlm_jax.pretrained.encode import encode_text

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # what begins after a function, as in the paper


def humaneval(tokenizer, path: str, max_new_tokens: int = 512, seconds: float = 10.0) -> Task:
    """pass@1 of JSON lines; `seconds` is what a program has. It runs what the model writes: programs.py says how."""
    questions = []
    for where, row in read_objects(path):
        prompt, test, name = (get_field(row, field, str, where) for field in ("prompt", "test", "entry_point"))
        program = (prompt, f"\n{test}\ncheck({name})\n")
        questions.append(Question(encode_text(tokenizer, prompt), program, max_new_tokens, "humaneval", where))
    return Task("humaneval", tuple(questions), PassesTests(STOP, seconds))
