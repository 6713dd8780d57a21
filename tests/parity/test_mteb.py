"""Inside mteb: local tasks, no network; what it reports is what our own functions say."""

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from scipy.stats import spearmanr

from configs.quickstart import AR_MODEL
from edlm_jax.attention import Bidirectional
from edlm_jax.evaluation.embedding import documented_functions, embed, normalise, retrieval
from edlm_jax.evaluation.mteb import Encoder
from edlm_jax.pretrained import load_pretrained, load_tokenizer

pytestmark = pytest.mark.parity
PAIRS = documented_functions(20)
SCORES = np.random.default_rng(0).uniform(0, 5, len(PAIRS)).tolist()


def metadata(name, kind, main_score):
    """What mteb wants to know of a task of our own."""
    unused = dict.fromkeys(("reference", "date", "domains", "task_subtypes", "license", "annotations_creators"))
    unused |= dict.fromkeys(("dialect", "sample_creation", "bibtex_citation"))
    kept = dict(name=name, type=kind, main_score=main_score, description="local", category="t2t", modalities=["text"])
    where = dict(dataset=dict(path="local/none", revision="1"), eval_splits=["test"], eval_langs=["eng-Latn"])
    return TaskMetadata(**kept, **where, **unused)


class Similarity(AbsTaskSTS):
    """Docstrings and bodies, to which arbitrary scores belong."""

    metadata = metadata("LocalSTS", "STS", "cosine_spearman")

    def load_data(self, **_):
        """From memory."""
        sentences = dict(zip(("sentence1", "sentence2"), zip(*PAIRS, strict=True), strict=True))
        self.dataset = DatasetDict(test=Dataset.from_dict(sentences | dict(score=SCORES)))
        self.data_loaded = True


class Functions(AbsTaskRetrieval):
    """The body that belongs to a docstring."""

    metadata = metadata("LocalRetrieval", "Retrieval", "recall_at_1")

    def load_data(self, **_):
        """From memory."""
        split = RetrievalSplitData(
            queries=Dataset.from_list([dict(id=f"q{i}", text=text) for i, (text, _) in enumerate(PAIRS)]),
            corpus=Dataset.from_list([dict(id=f"d{i}", title="", text=body) for i, (_, body) in enumerate(PAIRS)]),
            relevant_docs={f"q{i}": {f"d{i}": 1} for i in range(len(PAIRS))},
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def reported(task):
    """mteb's scores of one task."""
    encoder = Encoder(AR_MODEL, attention="bidirectional", dtype="float32")
    (result,) = mteb.evaluate(encoder, [task], cache=None).task_results
    return result.scores["test"][0]


def test_similarity_is_the_cosine_of_our_embeddings():
    model, tokenizer = load_pretrained(AR_MODEL, dtype="float32"), load_tokenizer(AR_MODEL)
    sides = ([tokenizer.encode(text) for text in side] for side in zip(*PAIRS, strict=True))
    ones, others = (normalise(embed(model, rows, pattern=Bidirectional())) for rows in sides)
    ours = spearmanr((ones * others).sum(axis=1), SCORES).statistic
    assert reported(Similarity())["cosine_spearman"] == pytest.approx(ours, abs=1e-6)


def test_retrieval_finds_what_our_own_finds():
    model, tokenizer = load_pretrained(AR_MODEL, dtype="float32"), load_tokenizer(AR_MODEL)
    ours, theirs = retrieval(model, tokenizer, PAIRS, pattern=Bidirectional()), reported(Functions())
    for name in ("recall_at_1", "recall_at_10"):
        assert theirs[name] == pytest.approx(ours[name], abs=1e-5)
    assert theirs["mrr_at_20"] == pytest.approx(ours["mean_reciprocal_rank"], abs=1e-5)
