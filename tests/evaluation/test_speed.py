"""How fast ways of decoding are: whole batches, in turns, generated tokens over the median of the second calls."""

from edlm_jax.decoding.generation import Generation
from edlm_jax.decoding.modes import Diffusion
from edlm_jax.evaluation import compare
from edlm_jax.evaluation.tasks.task import ExactMatch, Question, Task, Way
from edlm_jax.pretrained import Text


def test_rates_count_new_tokens_of_whole_batches(monkeypatch):
    clock, calls, done = iter(range(10_000)), [], []
    monkeypatch.setattr(compare.time, "perf_counter", lambda: next(clock))

    def way(name, ticks):
        def call(batch):
            calls.append((name, batch))
            for _ in range(100 if len(calls) % 2 else ticks):  # the first call of each turn may compile
                next(clock)
            return [[0] * (10 * ticks) for _ in batch]

        return call

    ways, prompts = {"short": way("short", 1), "long": way("long", 4)}, [[i] for i in range(7)]
    rates = compare.compare_rates(ways, prompts, batch_size=3, repeats=2, on_batch=done.append)
    assert rates == {"short": 3 * 10 / 2, "long": 3 * 40 / 5}  # a call of n ticks takes n + 1 of this clock
    assert [batch for _, batch in calls] == [prompts[:3]] * 8 + [prompts[3:6]] * 8  # the last prompt is in no batch
    assert [name for name, _ in calls[::2]] == [name for name, _ in calls[1::2]]  # two calls a turn
    assert all({name for name, _ in turn} == set(ways) for turn in (calls[:4], calls[4:8]))
    assert done == [1, 2]


def test_ways_take_turns_in_an_order_drawn_anew_for_each_batch():
    """With one repeat, too: or the way that comes first would do so throughout."""
    calls = []
    ways = {name: lambda batch, name=name: calls.append(name) or [[0]] for name in ("a", "b")}
    compare.compare_rates(ways, [[1]] * 20, batch_size=1, repeats=1)
    assert set(calls[::4]) == set(ways)


def test_speed_is_that_of_each_way_with_room_for_the_longest_answer(monkeypatch):
    asked = []

    class Decoder:
        spec = type("Spec", (), dict(max_length=20))

        def __init__(self, length):
            self.length = length

        def __call__(self, prompts, mode, limit, ends):
            asked.append((mode.name, len(prompts), limit, ends))
            return Generation([[1] * self.length], [[]], [1], [0])

    monkeypatch.setattr(compare.time, "perf_counter", iter(range(10_000)).__next__)
    questions = tuple(Question([7] * n, "", limit, "all", "") for n, limit in ((3, 5), (12, 9)))
    ways = [Way(Decoder(1), compare.AR), Way(Decoder(4), Diffusion(threshold=0.5)), Way(Decoder(2), Diffusion())]
    found = compare.compare_speed(ways, [Task("t", questions, ExactMatch())], Text(None, (2,)), timed_prompts=2)
    assert found == [{"tokens_per_second": rate} for rate in (1, 4, 2)]  # a call takes one tick
    assert set(asked) == {("ar", 1, 8, (2,)), ("diffusion", 1, 8, (2,))}  # the longest prompt leaves 8
    assert len(asked) == 3 * 2 * 3 * 2  # ways, prompts, repeats, calls a turn
