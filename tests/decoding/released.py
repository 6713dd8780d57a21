"""What the released samplers do, in plain Python: one row, no cache but where it changes the result.

Each takes `probabilities(tokens, mask_TT)`, the softmax at every column of a row of tokens that see each other as the
mask says (the mask token has none of it: no trained model proposes it), and returns (new tokens, denoising forwards).
Written from what the samplers of nvidia/Efficient-DLM-4B, Fast_dLLM_v2_7B and JetAstra/SDAR do, not from their text.
"""

import numpy as np

from edlm_jax.attention import BlockCausal
from tests.decoding.oracle import PrefilledBlocks


def efficient_dlm(probabilities, prompt, *, blocks, C, threshold, shifted, eos_id, mask_id):
    """The prompt sees itself whole; blocks begin at its end; the best token is kept, and all with the threshold."""
    tokens, forwards = list(prompt), 0
    for _ in range(blocks):
        start = len(tokens)
        tokens += [mask_id] * C
        mask_TT = PrefilledBlocks(len(prompt), C, "bidirectional").dense(len(tokens), len(tokens))
        before_V = probabilities(tokens[:start], mask_TT[:start, :start])[-1]  # of the prefill, or of the last commit
        while mask_id in tokens[start:]:
            p_CV = probabilities(tokens, mask_TT)[start:]
            forwards += 1
            if shifted:
                p_CV = np.concatenate([before_V[None], p_CV[:-1]])
            confidence = {i: p_CV[i].max() for i in range(C) if tokens[start + i] == mask_id}
            best = max(confidence, key=lambda i: confidence[i])
            for i, p in confidence.items():
                if i == best or p >= threshold:
                    tokens[start + i] = int(p_CV[i].argmax())
            if _ended(tokens[start:], eos_id, mask_id):
                break
        if eos_id in tokens[len(prompt) :]:
            break
    return _until(tokens[len(prompt) :], eos_id), forwards


def fast_dllm_v2(columns, prompt, *, blocks, C, U, threshold, dual_cache, eos_id, mask_id):
    """Blocks from position 0; every commit, and the prefill of whole blocks, gives one token, however sure.

    `columns` is a cache: what a forward of a sub-block alone sees of its block is what the last forward of it left.
    """
    tokens, forwards = list(prompt), 0

    def commit(first):
        mask_TT = BlockCausal(C).dense(len(tokens), len(tokens))
        tokens.append(int(columns.forward(tokens, mask_TT, list(range(first, len(tokens))))[-1].argmax()))

    if len(prompt) >= C:
        whole = len(prompt) // C * C
        mask_TT = BlockCausal(C).dense(whole, whole)
        columns.forward(tokens[:whole], mask_TT, list(range(whole)))
        if whole == len(prompt):
            commit(0)
    for _ in range(blocks):
        if eos_id in tokens[len(prompt) :]:
            break
        start, known, cached = len(tokens) // C * C, len(tokens), False
        tokens += [mask_id] * (start + C - known)
        mask_TT = BlockCausal(C).dense(len(tokens), len(tokens))
        for first in range(start, start + C, U):
            while mask_id in tokens[first : first + U] and not _ended(tokens[known:], eos_id, mask_id):
                whole = not dual_cache or not cached or tokens[first] == mask_id
                anew = range(start, start + C) if whole else range(first, first + U)
                p_TV = columns.forward(tokens, mask_TT, list(anew))
                forwards, cached = forwards + 1, True
                confidence = {i: p_TV[i - 1].max() for i in range(first, first + U) if tokens[i] == mask_id}
                best = max(confidence, key=lambda i: confidence[i])
                for i, p in confidence.items():
                    if i == best or p > threshold:
                        tokens[i] = int(p_TV[i - 1].argmax())
        if _ended(tokens[known:], eos_id, mask_id):
            break
        commit(start)
    return _until(tokens[len(prompt) :], eos_id), forwards


def sdar(probabilities, prompt, *, blocks, C, threshold, draw, mask_id):
    """Blocks from position 0. `draw(p_CV, forward)` is (tokens, the probabilities that they were drawn with)."""
    tokens, forwards = list(prompt), 0
    for block in range(len(prompt) // C, len(prompt) // C + blocks):
        start = block * C
        tokens += [mask_id] * (start + C - len(tokens))
        mask_TT = BlockCausal(C).dense(len(tokens), len(tokens))
        while mask_id in tokens[start:]:
            forwards += 1
            drawn_C, p_C = draw(probabilities(tokens, mask_TT)[start:], forwards)
            confidence = {i: p_C[i] for i in range(C) if tokens[start + i] == mask_id}
            sure = [i for i, p in confidence.items() if p > threshold]
            for i in sure or [max(confidence, key=lambda i: confidence[i])]:
                tokens[start + i] = int(drawn_C[i])
    return tokens[len(prompt) :], forwards


def narrowed(p_CV, temperature, top_k, top_p):
    """SDAR's distribution: at a temperature, of the best k tokens (0: all), of those that hold p."""
    with np.errstate(divide="ignore"):
        p_CV = np.exp(np.log(p_CV) / temperature)
    for p_V in p_CV:
        order = np.argsort(-p_V)
        p_V[order[top_k or len(p_V) :]] = 0
        p_V /= p_V.sum()
        before_V = np.cumsum(p_V[order]) - p_V[order]
        p_V[order[before_V > top_p]] = 0
        p_V /= p_V.sum()
    return p_CV


def _ended(new, eos_id, mask_id):
    return eos_id in new and mask_id not in new[: new.index(eos_id)]


def _until(new, eos_id):
    return new[: new.index(eos_id) + 1] if eos_id in new else new
