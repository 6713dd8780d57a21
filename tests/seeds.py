"""Fresh random inputs whose seed a failing test shows: EDLM_SEED=N in the environment draws the same again."""

import os

import numpy as np

_drawn = np.random.SeedSequence()  # of what is drawn while a module is read; a test begins anew


def begin_test() -> None:
    """Draws the test's seed; pytest shows what is printed here where the test fails."""
    global _drawn
    seed = int(os.environ.get("EDLM_SEED") or np.random.SeedSequence().generate_state(1)[0])
    _drawn = np.random.SeedSequence(seed)
    print(f"EDLM_SEED={seed} repeats this test's random inputs")


def fresh_rng() -> np.random.Generator:
    """The test's next generator."""
    return np.random.default_rng(_drawn.spawn(1)[0])
