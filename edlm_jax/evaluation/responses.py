"""A model's own responses to the prompts of documents: documents again, to be trained on as any other.

    dict(prompt=str, response=...)     ->  dict(index=int, prompt=str, response=what the model says, ...)
    dict(messages=[..., last answer])  ->  dict(index=int, messages=[..., what the model says], ...)

`index` is the document's place in its source; `ended` is false where the limit cut the response, which training would
take for its end; `accepted_at` has the forward that accepted each token, from 1. A batch is appended by one write, so
that a file that somebody reads or a kill leaves has whole lines. Beside FILE lies FILE.record.json, what the responses
were made with: the same call goes on behind the last line, another one is refused.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from edlm_jax.data.documents import Document
from edlm_jax.decoding import Decoder
from edlm_jax.errors import InputError
from edlm_jax.evaluation.batches import Decoded, decode_each
from edlm_jax.files import read_json, write_whole
from edlm_jax.pretrained.chat import encode_chat
from edlm_jax.pretrained.encode import encode_text
from edlm_jax.pretrained.source import TOKENIZER_FILES

Asked = Mapping[int, Mapping[str, Any]]  # questions by their documents' places
Prompts = Mapping[int, list[int]]  # their tokens
_READ = ("*.safetensors", "*.gguf", "*.json", *TOKENIZER_FILES)


def question_of(document: Document, chat: bool) -> dict[str, Any]:
    """A document without its response; with `chat` a prompt is what a user says. InputError if nothing is asked."""
    if "messages" not in document:
        if "prompt" not in document:
            raise InputError(f"it has no prompt but {', '.join(document)}; prompt, or messages, are answered")
        prompt = document["prompt"]
        return dict(messages=[dict(role="user", content=prompt)]) if chat else dict(prompt=prompt)
    asked = document["messages"]
    if asked and asked[-1]["role"] == "assistant":
        asked = asked[:-1]
    if not asked:
        raise InputError("the conversation asks for nothing")
    question = dict(messages=asked) | (dict(tools=document["tools"]) if document.get("tools") else {})
    try:
        json.dumps(question)
    except TypeError as error:  # of a table: its dates, say
        raise InputError(f"its messages can't be written as JSON: {error}") from None
    return question


def encode_question(question: Mapping[str, Any], tokenizer) -> list[int]:
    """The prompt's tokens, none if it is blank."""
    if "messages" in question:
        return encode_chat(tokenizer, question["messages"], question.get("tools"))
    return encode_text(tokenizer, question["prompt"]) if question["prompt"].strip() else []


def answered(question: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The question's document with this response."""
    if "messages" not in question:
        return dict(question, response=text)
    return dict(question, messages=[*question["messages"], dict(role="assistant", content=text.strip())])


def fingerprint(directory: Path) -> str:
    """Of a model's files: its weights, its configs, its tokenizer and chat template."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _READ for path in directory.rglob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(directory)} {content}\n".encode())
    return digest.hexdigest()


class ResponseFile(AbstractContextManager):
    """The file of one call's responses, open and locked; a context manager."""

    def __init__(self, path: Path, record: Mapping[str, Any]):
        self.path, self.done = path, {}  # index -> the question of each line that is there
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".record.json")
        self._check(beside, record)
        self._file = path.open("ab+", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another process writes {path}; wait for it, or choose another --out") from None
        if not beside.exists():
            write_whole(beside, json.dumps(record, indent=2) + "\n")
        self._read()

    def __exit__(self, *exception):
        self._file.close()

    def check_questions(self, questions: Asked) -> None:
        """Raises InputError if a line answers another question than the one that now has its index."""
        for index, question in self.done.items():
            if json.dumps(question) != json.dumps(questions.get(index)):  # by text: no NaN is another's equal
                what = f"{self.path} answers another prompt {index} than the one that is there now"
                raise InputError(f"{what}: the prompts have changed; choose another --out")

    def append(self, documents: Sequence[Mapping[str, Any]]) -> None:
        """Whole lines, in one write; what a full disk took of them is taken back."""
        lines = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents).encode()
        end = self.path.stat().st_size
        if self._file.write(lines) < len(lines):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file)

    def _check(self, beside: Path, record: Mapping[str, Any]) -> None:
        if not beside.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise InputError(f"{self.path} is there without {beside.name}; choose another --out")
            return
        old = read_json(beside)
        if changed := [name for name in [*record, *old] if record.get(name) != old.get(name)]:
            name = changed[0]
            what = f"{name}={old.get(name)}, not {record.get(name)}" if name != "model" else "another model"
            raise InputError(f"{self.path} was written with {what}; choose another --out, or the same settings")

    def _read(self) -> None:
        """Which lines are there; one that a broken machine left in part is cut off."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                document = json.loads(line)
                question = {name: document[name] for name in ("prompt", "messages", "tools") if name in document}
                if "messages" in question:
                    question["messages"] = question["messages"][:-1]
                self.done[document["index"]] = question
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.path}:{number} is no response; choose another --out") from None


def respond(
    decoder: Decoder, questions: Asked, prompts: Prompts, out: ResponseFile, *, limit: int, ends: Sequence[int], **how
) -> Iterator[list[Decoded]]:
    """Answers the questions at these indices, whose tokens `prompts` are; yields each batch when it is in the file."""
    indices = list(prompts)
    for batch in decode_each(decoder, list(prompts.values()), limit=limit, ends=ends, **how):
        documents = []
        for i, row in sorted(batch.items()):
            counts = dict(ended=len(row.tokens) < limit or row.tokens[-1] in ends, accepted_at=row.accepted_at)
            documents.append(dict(index=indices[i]) | answered(questions[indices[i]], row.text) | counts)
        out.append(documents)
        yield list(batch.values())
