"""Faults to plant, one at a time: what somebody might get wrong in each room. `run.py` says which tests see them.

Each is (what goes wrong, file, the text that is there once, the text in its place).
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One text of a file replaced by another."""

    name: str
    file: str
    old: str
    new: str

    @property
    def room(self) -> str:
        """The room of the package."""
        return self.file.split("/")[1]


FAULTS = [
    Fault("causal sees a successor", "edlm_jax/attention/pattern.py", "return k <= q\n", "return k <= q + 1\n"),
    Fault(
        "noisy blocks see their own clean block",
        "edlm_jax/attention/pattern.py",
        "(k_clean < self.first(q, q % self.length if copies is None else copies))",
        "(k_clean < self.first(q, q % self.length if copies is None else copies) + self.block_length)",
    ),
    Fault(
        "a group's blocks see its clean ones",
        "edlm_jax/attention/pattern.py",
        "return copies - column % self.span",
        "return copies - column % self.block_length",
    ),
    Fault(
        "a block's noise is that of the block before it",
        "edlm_jax/diffusion/chain.py",
        "axis=1)[:, 1:]",
        "axis=1)[:, :-1]",
    ),
    Fault(
        "clean positions go on after the noisy ones",
        "edlm_jax/attention/pattern.py",
        "(column - self.noisy_columns * (column >= self.noisy_columns)) % self.length",
        "column",
    ),
    Fault(
        "documents see earlier ones",
        "edlm_jax/attention/pattern.py",
        "q_segments_BT[:, :, None] == k_segments_BS[:, None, :]",
        "q_segments_BT[:, :, None] >= k_segments_BS[:, None, :]",
    ),
    Fault(
        "short rows leak the own clean block",
        "edlm_jax/attention/split.py",
        "columns_11S < first_BT[:, :, None]",
        "columns_11S <= first_BT[:, :, None]",
    ),
    Fault(
        "the tiles' backward pass forgets the softmax's sum",
        "edlm_jax/attention/tiled.py",
        'g_KGQH, v_KXH) - delta_KGQ1)',
        "g_KGQH, v_KXH))",
    ),
    Fault(
        "tiles that are seen in part are left out",
        "edlm_jax/attention/intervals.py",
        "by_tile((start_BRTJ < stop_BRTJ).any(1) & some_BTJ).any(2)",
        "by_tile((start_BRTJ < stop_BRTJ).any(1) & some_BTJ).all(2)",
    ),
    Fault(
        "too few tokens are masked",
        "edlm_jax/diffusion/masks.py",
        "jnp.round(level_N1 * corruptible_NC.sum",
        "jnp.floor(level_N1 * corruptible_NC.sum",
    ),
    Fault(
        "much noise, not little, hides the end first",
        "edlm_jax/diffusion/masks.py",
        "* (1 - level_N1) * index_C[None]",
        "* level_N1 * index_C[None]",
    ),
    Fault(
        "both complementary copies have one level",
        "edlm_jax/diffusion/masks.py",
        "jnp.concatenate([level_L, 1 - level_L])",
        "jnp.concatenate([level_L, level_L])",
    ),
    Fault(
        "the bound weighs all draws alike",
        "edlm_jax/diffusion/masks.py",
        "1 / (n_N1 / jnp.maximum(k_N1, 1)), corruptible_NC.shape",
        "jnp.ones(n_N1.shape), corruptible_NC.shape",
    ),
    Fault(
        "neighbouring rows share their noise",
        "edlm_jax/diffusion/noise.py",
        "lambda index: jax.random.fold_in(key, index))",
        "lambda index: jax.random.fold_in(key, index // 2))",
    ),
    Fault(
        "prompts are masked",
        "edlm_jax/diffusion/streams.py",
        'return (batch["loss_mask"] > 0) & (batch["segment_ids"] > 0)',
        'return batch["segment_ids"] > 0',
    ),
    Fault(
        "a shifted block's first token is read from its own clean column",
        "edlm_jax/diffusion/streams.py",
        "jnp.maximum(firsts_BN - 1, 0)",
        "jnp.maximum(firsts_BN, 0)",
    ),
    Fault(
        "a document predicts the next document",
        "edlm_jax/diffusion/streams.py",
        ".astype(bool) & same_BL & inside_L[None]",
        ".astype(bool) & inside_L[None]",
    ),
    Fault(
        "the loss is not weighted by 1/t",
        "edlm_jax/diffusion/terms.py",
        "weighted_sum(ce_BL / noise_level_BL, masked_BL)",
        "weighted_sum(ce_BL, masked_BL)",
    ),
    Fault(
        "AR's loss under a pattern that sees the answer",
        "edlm_jax/diffusion/terms.py",
        "if not layout.next_tokens:",
        "if False:",
    ),
    Fault(
        "rotation has the wrong sign",
        "edlm_jax/models/rope.py",
        "left * cos - right * sin",
        "left * cos + right * sin",
    ),
    Fault(
        "keys are normed by the queries' scale",
        "edlm_jax/models/layer.py",
        'norm(spec, k_BSKH, p["k_norm_H"]',
        'norm(spec, k_BSKH, p["q_norm_H"]',
    ),
    Fault(
        "fused queries lie in another order",
        "edlm_jax/models/layer.py",
        "q.reshape(*k.shape[:-1], -1, k.shape[-1]), k[..., None, :], v[..., None, :]",
        "q.reshape(*k.shape[:-1], -1, k.shape[-1]), v[..., None, :], k[..., None, :]",
    ),
    Fault(
        "the head's gradient is that of the last chunk",
        "edlm_jax/models/head.py",
        "return sum_DV + dhead_DV, ",
        "return dhead_DV, ",
    ),
    Fault(
        "the cache's padding is looked at",
        "edlm_jax/decoding/blocks.py",
        "self.inside(columns_11S, block_end_BT1)",
        "columns_11S < block_end_BT1",
    ),
    Fault(
        "padding shifts the positions",
        "edlm_jax/decoding/blocks.py",
        "self.at(first_B[:, None] + columns_T[None])",
        "self.rotary.at(first_B[:, None] + columns_T[None])",
    ),
    Fault(
        "a threshold of one accepts rounded ones",
        "edlm_jax/decoding/acceptance.py",
        "(proposal.confidence_BC >= self.threshold) & (self.threshold < 1)",
        "proposal.confidence_BC >= self.threshold",
    ),
    Fault(
        "a prefix goes on after a doubt",
        "edlm_jax/decoding/acceptance.py",
        "jnp.cumsum(~goes_on_BC, axis=-1) == 0",
        "jnp.cumsum(~goes_on_BC, axis=-1) <= 1",
    ),
    Fault(
        "the entropy bound counts the last one, too",
        "edlm_jax/decoding/acceptance.py",
        "(before_BC <= self.entropy)",
        "(before_BC + proposal.entropy_BC <= self.entropy)",
    ),
    Fault(
        "top_p leaves out the token that crosses it",
        "edlm_jax/decoding/sampling.py",
        "jnp.cumsum(p_BCV, axis=-1) - p_BCV < least_p",
        "jnp.cumsum(p_BCV, axis=-1) < least_p",
    ),
    Fault(
        "a row's own top_k narrows nothing without top_p",
        "edlm_jax/decoding/sampling.py",
        "jnp.maximum(least_BC1, held_BC1)",
        "held_BC1",
    ),
    Fault(
        "the engine tells tokens again",
        "edlm_jax/decoding/batching.py",
        "slice(columns.start + row.told, columns.stop)",
        "slice(columns.start, columns.stop)",
    ),
    Fault(
        "all rows of the engine have one seed",
        "edlm_jax/decoding/requests.py",
        "np.array([settings.seed], np.uint32)",
        "np.array([0], np.uint32)",
    ),
    Fault(
        "a prompt's last piece goes beyond its end",
        "edlm_jax/decoding/program.py",
        "at_B = new_B if whole else jnp.minimum(new_B, end_B - length)",
        "at_B = new_B",
    ),
    Fault(
        "a prompt goes on from one that begins otherwise",
        "edlm_jax/decoding/stretches.py",
        "(most if same.all() else int(np.argmin(same)))",
        "most",
    ),
    Fault(
        "a page is known by its own tokens, whatever stands before them",
        "edlm_jax/decoding/pages.py",
        "hashlib.sha256(key + row",
        "hashlib.sha256(row",
    ),
    Fault(
        "rows share the page of their last block",
        "edlm_jax/decoding/pages.py",
        "range(row.pad // P, (row.start - self.unit) // P)",
        "range(row.pad // P, -(-row.start // P))",
    ),
    Fault(
        "a row that ended keeps its first page",
        "edlm_jax/decoding/pages.py",
        "for page in reversed(pages):",
        "for page in reversed(pages[1:]):",
    ),
    Fault(
        "the load chooses the slowest mode",
        "edlm_jax/decoding/load.py",
        "return max(modes, key",
        "return min(modes, key",
    ),
    Fault(
        "rows that fill a batch up are decoded",
        "edlm_jax/decoding/decoder.py",
        "(np.pad(x, (0, spare))",
        '(np.pad(x, (0, spare), mode="edge")',
    ),
    Fault(
        "each limit is another program",
        "edlm_jax/decoding/modes/mode.py",
        "bucket(self.limit_B.max(), _LEAST_ROOM)",
        "int(self.limit_B.max())",
    ),
    Fault(
        "rows that ask for top_p alone are not narrowed",
        "edlm_jax/decoding/sampling.py",
        "(top_k > 0) | (top_p < 1)",
        "(top_k > 0)",
    ),
    Fault("a row ends before its end", "edlm_jax/decoding/ends.py", "enumerate(tokens, 1)", "enumerate(tokens, 0)"),
    Fault(
        "tokens after an end are settled",
        "edlm_jax/decoding/left_to_right.py",
        "jnp.where(rows.done_B, 0, jnp.minimum(settled_B, first_end_B))",
        "jnp.where(rows.done_B, 0, settled_B + jnp.zeros_like(first_end_B))",
    ),
    Fault(
        "a prompt's padding is on the wrong grid",
        "edlm_jax/data/packing.py",
        "left = -int(loss_mask_L.argmax()) % grid.block_length",
        "left = int(loss_mask_L.argmax()) % grid.block_length",
    ),
    Fault(
        "padding belongs to a document",
        "edlm_jax/data/packing.py",
        'np.where(positions_L >= 0, row["piece_segment_ids"], 0)',
        'np.where(positions_L >= -1, row["piece_segment_ids"], 0)',
    ),
    Fault(
        "shards read the same documents",
        "edlm_jax/data/pipeline.py",
        "documents.repeat()[shard :: data.shards]",
        "documents.repeat()",
    ),
    Fault(
        "micro-batches are averaged",
        "edlm_jax/training/step.py",
        "return drawn.loss(sums, weights), sums",
        "return drawn.loss(sums, weights) / optimizer.accumulation, sums",
    ),
    Fault(
        "all steps have the same noise",
        "edlm_jax/training/step.py",
        "jax.random.fold_in(jax.random.key(numbers.seed), state.step)",
        "jax.random.fold_in(jax.random.key(numbers.seed), 0 * state.step)",
    ),
    Fault(
        "a teacher sees blocks of the length that is learned",
        "edlm_jax/training/teacher.py",
        "layout = replace(layout, noisy_length=",
        "layout = replace(noisy, noisy_length=",
    ),
    Fault(
        "a teacher speaks of what fills last blocks",
        "edlm_jax/diffusion/taught.py",
        'streams.batch["loss_mask"] == 1',
        'streams.batch["loss_mask"] > 0',
    ),
    Fault(
        "the embedding decays",
        "edlm_jax/training/optimizer.py",
        '("norm", "bias", "embedding")',
        '("norm", "bias")',
    ),
    Fault(
        "a resumed run is a step ahead",
        "edlm_jax/training/checkpoint.py",
        'TrainState(restored.optimizer["step"], ',
        'TrainState(restored.optimizer["step"] + 1, ',
    ),
    Fault(
        "a resumed run starts its data again",
        "edlm_jax/training/checkpoint.py",
        "args.item.set_state({shard:",
        "dict({shard:",
    ),
    Fault(
        "another config is continued",
        "edlm_jax/training/config.py",
        "if ours.get(name) != stored.get(name))",
        "if ours.get(name) is None)",
    ),
    Fault(
        "a warm-up longer than the run is taken",
        "edlm_jax/training/config.py",
        "yield steps > c.steps,",
        "yield steps > 10 * c.steps,",
    ),
    Fault(
        "keys and values change places in a checkpoint",
        "edlm_jax/pretrained/layout.py",
        '"k_DKH": ("self_attn.k_proj.weight", "KH,D"),\n    "v_DKH": ("self_attn.v_proj.weight", "KH,D"),',
        '"k_DKH": ("self_attn.v_proj.weight", "KH,D"),\n    "v_DKH": ("self_attn.k_proj.weight", "KH,D"),',
    ),
    Fault(
        "unknown tensors are passed over",
        "edlm_jax/pretrained/checkpoint.py",
        "        if unknown:\n",
        "        if False:\n",
    ),
    Fault(
        "an export is always float32",
        "edlm_jax/pretrained/save.py",
        'np.dtype(dtype or params[("embedding_VD",)].dtype)',
        'np.dtype("float32")',
    ),
    Fault(
        "axes that do not divide are taken",
        "edlm_jax/parallel/sharding.py",
        "return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()",
        "return axes",
    ),
    Fault("heads lie over data", "edlm_jax/parallel/sharding.py", 'K: Axes = ("tensor",)', 'K: Axes = ("data",)'),
    Fault(
        "columns of a batch are whole on every device",
        "edlm_jax/parallel/mesh.py",
        "PartitionSpec(TRAINING.B, TRAINING.L)",
        "PartitionSpec(TRAINING.B, None)",
    ),
    Fault(
        "bad input has another exit code",
        "edlm_jax/commands/main.py",
        "FAILED, STOPPED = 2, 130, 1, 128 + 15",
        "FAILED, STOPPED = 1, 130, 1, 128 + 15",
    ),
    Fault(
        "tokens per forward are tokens per row",
        "edlm_jax/commands/generate.py",
        "max(sum(row.denoise_forwards for row in decoded), 1)",
        "max(len(decoded), 1)",
    ),
]
