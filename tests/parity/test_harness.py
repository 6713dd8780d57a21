"""Inside lm-evaluation-harness: local task files, no network; what it reports is what our own functions say."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing

import edlm_jax
from edlm_jax import InputError, load_pretrained, save_pretrained
from edlm_jax.data.documents import tokenize
from edlm_jax.evaluation import harness
from edlm_jax.evaluation.harness import EdlmLM
from edlm_jax.evaluation.likelihood import log_likelihood
from edlm_jax.pretrained import load_tokenizer
from tests.chain import byte_tokenizer, copy_with, save_chain, save_tokenizer, steps, word_tokenizer
from tests.conftest import TINY

pytestmark = pytest.mark.parity
MAX_LENGTH, VOCABULARY, EOS, BOS = 512, 259, 256, 257
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
{more}
"""
KINDS = {
    "generate_until": """doc_to_target: "{{response}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 9, do_sample: false}
metric_list: [{metric: exact_match}]""",
    "multiple_choice": """doc_to_choice: ["yes", "no way"]
doc_to_target: 0
metric_list: [{metric: acc}]""",
    "loglikelihood_rolling": """doc_to_target: "{{response}}"
metric_list: [{metric: byte_perplexity}]""",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def evaluate(tmp_path):
    """(results, samples) of one kind of task with three documents."""
    rows = [dict(prompt=f"say {word} ->", response=f"{word} it is") for word in ("one", "twenty", "three hundred")]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(kind, **model_args):
        (tmp_path / f"{kind}.yaml").write_text(
            TASK.format(name=f"local_{kind}", data=tmp_path / "docs.jsonl", kind=kind, more=KINDS[kind])
        )
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        arguments = ",".join(f"{name}={value}" for name, value in model_args.items())
        found = simple_evaluate(
            "edlm_jax", model_args=arguments, tasks=[f"local_{kind}"], task_manager=manager, batch_size=2
        )
        return found["results"][f"local_{kind}"], found["samples"][f"local_{kind}"]

    return run


OPTIONS = {"diffusion": dict(threshold=0.5, block_length=3), "ar": {}}


@pytest.mark.parametrize("mode", OPTIONS)
def test_generation_is_ours_up_to_the_stop_string(evaluate, tiny_converted_dir, mode):
    _, samples = evaluate(
        "generate_until", pretrained=tiny_converted_dir, dtype="float32", mode=mode, **OPTIONS[mode]
    )
    model, tokenizer = load_pretrained(tiny_converted_dir, "float32"), load_tokenizer(tiny_converted_dir)
    texts = []
    for sample in samples:
        prompt = tokenizer.encode(sample["doc"]["prompt"])
        how = dict(max_new_tokens=9, mode=mode, eos_id=EOS, **OPTIONS[mode])
        (tokens,) = edlm_jax.generate(model, [prompt], **how).tokens
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True).split("e")[0].split("\n")[0])
    assert [sample["filtered_resps"][0] for sample in samples] == texts
    assert any(texts)


def test_stop_strings_cut_and_settings_group(tiny_ar_dir, caplog):
    lm = EdlmLM(str(tiny_ar_dir), dtype="float32", batch_size=2)
    (long,) = lm.generate_until([request("generate_until", "abc", {"until": [], "max_gen_toks": 12})])
    stop = long[5:7]
    several = [("abc", {"until": [long[9:11], stop], "max_gen_toks": 12}), ("x", {"until": stop})]
    several.append(("abc", {"max_gen_toks": 3}))
    cut, _, short = lm.generate_until([request("generate_until", *pair) for pair in several])
    assert cut == long[: long.index(stop)] and long.startswith(short) and len(short) <= 3
    assert lm.contexts_cut == 0 and "lost their beginning" not in caplog.text
    too_long = ("y" * 600 + "abc", {"until": [], "max_gen_toks": 12})
    late, _ = lm.generate_until([request("generate_until", *pair) for pair in (too_long, ("abc", too_long[1]))])
    assert lm.contexts_cut == 1 and "1 of 2 contexts lost their beginning: the model holds 512 tokens" in caplog.text
    lm.loglikelihood([request("loglikelihood", text, "hi") for text in ("x" * 511, "x" * 510)], disable_tqdm=True)
    assert lm.contexts_cut == 2
    (kept,) = lm.generate_until([request("generate_until", "y" * 497 + "abc", {"until": [], "max_gen_toks": 12})])
    assert late == kept  # a context too long loses its beginning


def test_answers_end_where_the_model_ends(tmp_path):
    pieces = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")  # 256, 257, 258
    made = save_tokenizer(byte_tokenizer(*pieces), tmp_path / "tokenizer", config=TINY, eos_token=pieces[0])
    first = save_chain(made, steps(64, 65, 257, 66, 256), tmp_path / "first")  # a, b, <|im_end|>, c, <|endoftext|>
    listed = copy_with(first, tmp_path / "listed", generation_config={"eos_token_id": [257, 256]})
    ask = lambda model, until: EdlmLM(str(model)).generate_until(  # noqa: E731
        [request("generate_until", "a", {"until": until, "max_gen_toks": 12})], disable_tqdm=True
    )
    assert ask(first, []) == ["bc"] and ask(listed, []) == ["b"]
    assert ask(first, ["<|im_end|>"]) == ["b"] and ask(first, ["b<|im_end|>"]) == [""]


def test_words_have_their_leading_space(tmp_path):
    tokenizer = word_tokenizer()
    said = tokenizer.encode("w2 w58 w43").ids
    made = save_tokenizer(tokenizer, tmp_path / "tokenizer", config=TINY, eos_token="</s>")
    lm = EdlmLM(str(save_chain(made, steps(*said, 0), tmp_path / "model")))
    kwargs = {"until": ["43"], "max_gen_toks": 12}
    assert lm.generate_until([request("generate_until", "w1 w2", kwargs)], disable_tqdm=True) == [" w58 w"]


def test_multiple_choice_compares_exact_likelihoods(evaluate, tiny_ar_dir):
    results, samples = evaluate("multiple_choice", pretrained=tiny_ar_dir, dtype="float32")
    model = load_pretrained(tiny_ar_dir, "float32")
    right = []
    for sample in samples:
        context = list(sample["doc"]["prompt"].encode())
        expected = [dense_nats(model, context, list(f" {choice}".encode())) for choice in ("yes", "no way")]
        got = [float(response[0]) for response in sample["filtered_resps"]]
        np.testing.assert_allclose(got, expected, rtol=1e-4)
        right.append(expected[0] > expected[1])
    assert results["acc,none"] == pytest.approx(np.mean(right))


def dense_nats(model, context, continuation):
    """The tokenizer of the tests has a token for each byte, in the order of byte-level letters."""
    tokens = np.array([byte_tokens(context + continuation)])
    log_p_TV = np.array(jax.nn.log_softmax(model(tokens)))[0]
    return sum(log_p_TV[len(context) + i - 1, tokens[0, len(context) + i]] for i in range(len(continuation)))


def byte_tokens(values):
    from tokenizers import pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [letters.index(bytes_to_unicode()[value]) for value in values]


def request(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"


@pytest.fixture
def closing(tiny_ar_dir, tmp_path):
    """A model whose tokenizer puts <|pad|> before a text and <|endoftext|> behind it, and has a chat template."""
    directory = shutil.copytree(tiny_ar_dir, tmp_path / "closing")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    special = [("<|pad|>", BOS), ("<|endoftext|>", EOS)]
    added = TemplateProcessing(single="<|pad|> $A <|endoftext|>", special_tokens=special)
    tokenizer["post_processor"] = json.loads(added.__getstate__())
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings |= dict(bos_token="<|pad|>", chat_template=CHAT_TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return EdlmLM(str(directory), dtype="float32", batch_size=2)


def test_a_text_begins_with_the_start_token_and_has_no_end(closing):
    ids = {text: [*byte_tokens(text.encode())] for text in ("abc", "ab", "c")}
    pairs = [("", "abc"), ("ab", "c"), ("<|pad|>ab", "c"), ("", "<|pad|>abc")]
    given = [([BOS], ids["abc"]), ([BOS, *ids["ab"]], ids["c"]), ([BOS, *ids["ab"]], ids["c"]), ([BOS], ids["abc"])]
    expected = [score.log_likelihood for score in log_likelihood(closing.model, given)]
    found = closing.loglikelihood([request("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    np.testing.assert_allclose([nats for nats, _ in found], expected, rtol=1e-6)
    rolling = closing.loglikelihood_rolling([request("loglikelihood_rolling", text) for text in ("abc", "<|pad|>abc")])
    np.testing.assert_allclose(rolling, [expected[0]] * 2, rtol=1e-6)
    (text,) = closing.generate_until([request("generate_until", "abc", {"until": [], "max_gen_toks": 4})])
    (tokens,) = edlm_jax.generate(closing.model, [[BOS, *ids["abc"]]], max_new_tokens=4, mode="ar", eos_id=EOS).tokens
    assert text == closing.tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_conversation_ends_where_its_template_says_so_in_plain_text(closing):
    closing.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    chats = [closing.apply_chat_template([dict(role="user", content=letter)]) for letter in "abcdefgh"]
    asked = [request("generate_until", text, {"until": [], "max_gen_toks": 12}) for text in [*chats, "abc"]]
    *answers, other = closing.generate_until(asked)
    for whole in (max(answers, key=len), other):
        assert len(whole) > 4
        closing.text = dataclasses.replace(closing.text, turn_stop=whole[2:4])
        *found, alone = closing.generate_until(asked)
        assert found == [answer.partition(whole[2:4])[0] for answer in answers]
        assert alone == other  # a text that no template wrote has no such end


def test_a_conversation_is_rendered_and_read_as_in_training(closing):
    messages = [dict(role="user", content="a<|endoftext|>b"), dict(role="assistant", content="c")]
    (tokens_L, _), *others = tokenize(dict(messages=messages), closing.tokenizer)
    text = closing.apply_chat_template(messages, add_generation_prompt=True)
    assert closing.tok_encode(text) == tokens_L.tolist() and not others
    assert (tokens_L == EOS).sum() == 2 and BOS not in tokens_L  # the quotation is text; the template wants no start


@pytest.mark.parametrize("mode", ["ar", "diffusion"])
def test_what_decoding_says_is_greedy_and_nothing_else(tiny_converted_dir, mode):
    lm = EdlmLM(str(tiny_converted_dir), dtype="float32", mode=mode, num_samples=4, batch_size=2)
    contexts = ["say one ->", "and two"]
    decoded = [
        edlm_jax.generate(lm.model, [lm.tok_encode(text)], max_new_tokens=6, mode=mode, eos_id=None).tokens[0]
        for text in contexts
    ]
    pairs = [(("", ""), lm.tok_encode(text), tokens[:n]) for text, tokens, n in zip(contexts, decoded, (6, 4))]  # noqa: B905
    full = np.random.default_rng(0).integers(0, 256, MAX_LENGTH - 4).tolist()  # leaves no room for six tokens
    tokens = edlm_jax.generate(lm.model, [full], max_new_tokens=4, mode=mode, eos_id=None).tokens[0]
    pairs.append((("", ""), full, tokens))
    other = (1, -1, 1)  # a token after the greedy one, and one before it
    wrong = [(texts, context, [*new[:-1], (new[-1] + d) % 256]) for (texts, context, new), d in zip(pairs, other)]  # noqa: B905
    scores = lm._loglikelihood_tokens(pairs + wrong, disable_tqdm=True)
    assert [greedy for _, greedy in scores] == [True] * 3 + [False] * 3
    for seed, ((_, context, new), (nats, _)) in enumerate(zip(pairs + wrong, scores, strict=True)):
        (alone,) = log_likelihood(lm.model, [(context, new)], mode=mode, num_samples=4, seed=seed)
        assert nats == pytest.approx(alone.log_likelihood, rel=1e-5)


def test_rolling_counts_every_token_once(evaluate, tiny_ar_dir, tmp_path):
    model = load_pretrained(tiny_ar_dir, "float32")
    model.embedding_VD[...] = 0 * model.embedding_VD[...]  # tied: every token is as likely as any other
    save_pretrained(model, tmp_path / "uniform", dtype="float32")
    lm = EdlmLM(str(tmp_path / "uniform"), dtype="float32")
    lengths = (3, MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 189)
    texts = ["a" * length for length in lengths]
    nats = lm.loglikelihood_rolling([request("loglikelihood_rolling", text) for text in texts], disable_tqdm=True)
    np.testing.assert_allclose(nats, [-length * math.log(VOCABULARY) for length in lengths], rtol=1e-5)
    results, _ = evaluate("loglikelihood_rolling", pretrained=tmp_path / "uniform", dtype="float32")
    assert results["byte_perplexity,none"] == pytest.approx(VOCABULARY, rel=1e-4)


def test_no_context_is_the_end_token(tiny_ar_dir):
    lm = EdlmLM(str(tiny_ar_dir), dtype="float32")
    ((nats, _),) = lm.loglikelihood([request("loglikelihood", "", "hi")], disable_tqdm=True)
    (expected,) = log_likelihood(nnx.merge(*nnx.split(lm.model)), [([EOS], lm.tok_encode("hi"))])
    assert nats == pytest.approx(expected.log_likelihood, rel=1e-5)


def test_arguments_that_are_none_have_their_defaults(tiny_ar_dir):
    names = ("dtype", "mode", "threshold", "rule", "block_length", "num_samples", "batch_size", "seed")
    lm = EdlmLM.create_from_arg_string(",".join([f"pretrained={tiny_ar_dir}", *(f"{name}=None" for name in names)]))
    plain = EdlmLM(str(tiny_ar_dir))
    for name in ("decoding", "likelihood", "num_samples", "batch_size", "seed"):
        assert getattr(lm, name) == getattr(plain, name), name
    kwargs = dict.fromkeys(("until", "temperature", "top_k", "top_p", "do_sample")) | {"max_gen_toks": 4}
    (text,) = lm.generate_until([request("generate_until", "abc", kwargs)])
    assert [text] == lm.generate_until([request("generate_until", "abc", {"max_gen_toks": 4})])


def test_a_negative_top_k_is_all_tokens(tiny_ar_dir):
    lm = EdlmLM(str(tiny_ar_dir), dtype="float32")
    sampled = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    ways = [request("generate_until", "abc", sampled | how) for how in ({"top_k": -1}, {"top_k": 0}, {})]
    assert len({lm.generate_until([way])[0] for way in ways}) == 1


def test_a_context_that_cannot_be_decoded_is_answered_by_nothing_and_named(tiny_converted_dir, caplog):
    lm = EdlmLM(str(tiny_converted_dir), dtype="float32", batch_size=2)
    contexts = ["a long one to come last", "say <|fim_pad|>", "b"]
    requests = [
        Instance("generate_until", {}, (text, {"max_gen_toks": 4}), 0, metadata=("mine", index, 1))
        for index, text in enumerate(contexts)
    ]
    first, nothing, last = lm.generate_until(requests)
    assert nothing == "" and [first, last] == lm.generate_until([requests[0], requests[2]])
    assert "answered by nothing: the prompt of document 1 of mine holds the mask token 258" in caplog.text
    pairs = [(("", ""), lm.tok_encode(text), [5]) for text in contexts]
    scores = lm._loglikelihood_tokens(pairs, disable_tqdm=True)
    assert len(scores) == 3 and scores[1][1] is False


def test_bad_arguments_are_refused_before_weights_are_read(tiny_ar_dir, tmp_path, monkeypatch, capsys):
    bare = shutil.copytree(tiny_ar_dir, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    for argument, reason in (
        ("mode=diffusion", "never converted"), ("seed=-1", "seed must not be negative"), ("mode=chess", "'chess'"),
        ("threshold=0.5", "threshold=0.5 means nothing to ar"),
        ("batch_size=auto", "batch_size must be a positive number"), ("num_samples=0", "num_samples must be"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=reason):
            EdlmLM.create_from_arg_string(f"pretrained={bare},{argument}")

    def refuse():
        raise InputError("no such model")

    monkeypatch.setattr(harness, "cli_evaluate", refuse)
    with pytest.raises(SystemExit) as stop:
        harness.main()
    assert stop.value.code == 2 and capsys.readouterr().err == "edlm_jax: no such model\n"
