"""The Triton kernel of ``fused.count_better``."""

import torch
import triton
import triton.language as tl


# Specialised only to the dimension: the other sizes change from call to call.
@triton.jit(do_not_specialize=["room", "users", "steps", "interests", "turns"])
def count_kernel(
    vectors: tl.tensor,  # [users in whole blocks, interests, parts, dim]
    weight: tl.tensor,  # [items in whole blocks, parts, dim]
    norms: tl.tensor,  # [items in whole blocks], nan for padding
    bounds: tl.tensor,  # [users], errors of scores relative to the items' norms
    counts: tl.tensor,  # [users], targets of each user
    first: tl.tensor,  # [users], index of each user's first target
    low: tl.tensor,  # [targets], the lowest score that ties
    high: tl.tensor,  # [targets], the highest score that ties
    own: tl.tensor,  # [targets], index of the target itself, or -1
    twice: tl.tensor,  # [targets], output: 2 for each better item and 1 for each tie
    words: tl.tensor,  # [room, 3], output: a target, an item, and a bit for each of 32 items from it on that is close
    found: tl.tensor,  # [1], output: the number of words, possibly more than room
    room: tl.tensor,
    users: tl.tensor,
    steps: tl.tensor,  # blocks of items
    interests: tl.tensor,
    turns: tl.tensor,  # blocks of items per program
    dim: tl.constexpr,
    parts: tl.constexpr,
    attentive: tl.constexpr,
    precision: tl.constexpr,
    block_users: tl.constexpr,
    block_items: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    """Compares the targets of a block of users with ``turns`` blocks of items."""
    start = tl.program_id(0) * block_users
    row, column, axis = tl.arange(0, block_users), tl.arange(0, block_items), tl.arange(0, block_dims)
    real = start + row < users
    count = tl.load(counts + start + row, mask=real, other=0)
    target = tl.load(first + start + row, mask=real, other=0)
    bound = tl.load(bounds + start + row, mask=real, other=0.0)
    most = tl.load(counts + start)  # users are sorted by their number of targets, descending
    size: tl.constexpr = parts * dim
    user_vectors = vectors + start.to(tl.int64) * interests * size + (row * interests * size)[:, None] + axis[None, :]
    begin = tl.program_id(1) * turns
    for step in range(begin, tl.minimum(begin + turns, steps)):
        item_vectors = weight + tl.cast(step, tl.int64) * block_items * size + (column * size)[:, None] + axis[None, :]
        best = tl.full([block_users, block_items], float("-inf"), tl.float32)
        total = tl.full([block_users, block_items], 0.0, tl.float32)
        weighted = tl.full([block_users, block_items], 0.0, tl.float32)
        for k in range(0, interests):
            agreement = tl.full([block_users, block_items], 0.0, tl.float32)
            for part in range(0, dim, block_dims):
                left, right = user_vectors + k * size + part, item_vectors + part
                user, item = tl.load(left), tl.trans(tl.load(right))
                if parts == 2:
                    user_rest, item_rest = tl.load(left + dim), tl.trans(tl.load(right + dim))
                    agreement = tl.dot(user, item_rest, agreement, input_precision=precision)
                    agreement = tl.dot(user_rest, item, agreement, input_precision=precision)
                agreement = tl.dot(user, item, agreement, input_precision=precision)
            if attentive:
                # Online softmax, scaled to the largest product so far: either the old or the new weight is 1.
                above = agreement > best
                fade = tl.exp(-tl.abs(agreement - best))
                old, new = tl.where(above, fade, 1.0), tl.where(above, 1.0, fade)
                total = total * old + new
                weighted = weighted * old + new * agreement
            best = tl.maximum(best, agreement)
        score = weighted / total if attentive else best
        error = bound[:, None] * tl.load(norms + step * block_items + column)[None, :]
        lower, upper = score - error, score + error
        for turn in range(0, most):
            active = turn < count
            floor = tl.load(low + target + turn, mask=active, other=float("inf"))[:, None]
            ceiling = tl.load(high + target + turn, mask=active, other=float("inf"))[:, None]
            itself = tl.load(own + target + turn, mask=active, other=-1)[:, None] - step * block_items
            other = active[:, None] & (column[None, :] != itself)
            hits = (lower >= floor).to(tl.int32) + (lower > ceiling).to(tl.int32)
            close = other & (hits != (upper >= floor).to(tl.int32) + (upper > ceiling).to(tl.int32))
            # One sum for both: a block's hits stay below 2^16. Integer sums do not depend on the order.
            sums = tl.sum(tl.where(close, 65536, tl.where(other, hits, 0)), 1)
            counted = sums & 65535
            tl.atomic_add(twice + target + turn, counted, mask=counted > 0, sem="relaxed")
            if tl.max(sums) >= 65536:  # rare
                for word in tl.static_range(0, block_items, 32):
                    bits = tl.where(column // 32 == word // 32, 1 << column % 32, 0)
                    flags = tl.sum(tl.where(close, bits[None, :], 0), 1)
                    slot = tl.atomic_add(found + tl.zeros_like(flags), 1, mask=flags != 0, sem="relaxed")
                    place, kept = words + 3 * slot.to(tl.int64), (flags != 0) & (slot < room)
                    tl.store(place, target + turn, mask=kept)
                    tl.store(place + 1, step * block_items + word, mask=kept)
                    tl.store(place + 2, flags, mask=kept)


def unpack_pairs(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets ``[m]`` and items ``[m]``, int64, of the kernel's ``words``."""
    bits = words[:, 2:] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
    row, bit = bits.nonzero().unbind(1)
    return words[row, 0].long(), words[row, 1] + bit
