"""MBPP (arXiv 2108.07732) and files of its shape: a task in words, and assertions about the function that solves it.

    {"text": "Write a function to add two numbers.", "test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}

The prompt is InCoder's (arXiv 2204.05999): the words and the first assertion, in a docstring.
"""

from edlm_jax.data.sources import read_objects
from edlm_jax.errors import InputError
from edlm_jax.evaluation.tasks.task import PassesTests, Question, Task, get_field
from edlm_jax.pretrained.encode import encode_text

STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")


def mbpp(tokenizer, path: str, max_new_tokens: int = 512, seconds: float = 10.0) -> Task:
    """pass@1 of JSON lines, of the sanitized ones, too; as `humaneval`."""
    questions = []
    for where, row in read_objects(path):
        words = get_field(row, "prompt" if "prompt" in row else "text", str, where)
        tests = get_field(row, "test_list", list, where)
        if not tests or not all(isinstance(test, str) for test in tests):
            raise InputError(f"test_list of {where} must be assertions, one or more")
        first = {"test_imports": [], "test_setup_code": ""} | row  # neither kind of file has both
        imports = map(str, get_field(first, "test_imports", list, where))
        setup = "\n".join([*imports, get_field(first, "test_setup_code", str, where)])
        prompt = encode_text(tokenizer, f'"""\n{words}\n{tests[0]}\n"""\n')
        program = (f"{setup}\n", "\n" + "\n".join(tests) + "\n")
        questions.append(Question(prompt, program, max_new_tokens, "mbpp", where))
    return Task("mbpp", tuple(questions), PassesTests(STOP, seconds))
