"""The best N of a shard for each user, tile by tile."""

import torch

from dist_imsr.evaluation.tiles import Pairs, Shard, above_threshold, exact_scores, iterate_tiles


def best_items(shard: Shard, users: torch.Tensor, top: int, excluded: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of a shard for each user; of equal scores the smaller id comes first.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users with K interests each.
        top: N.
        excluded: pairs of a user's index and an item that is left out.

    Returns:
        Scores ``[B, N]`` in descending order, and ids ``[B, N]`` int64; filled up with -inf and -1.
    """
    if not users.shape[1]:  # all items tie, as they do for one interest of length zero
        users = users.new_zeros(len(users), 1, users.shape[2])
    scores = users.new_full((len(users), top), -torch.inf)
    ids = torch.full((len(users), top), -1, device=users.device)
    pending: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    all_users = torch.arange(len(users), device=users.device)
    num_pending = 0

    def merge() -> None:
        nonlocal scores, ids
        row, value, item = (torch.cat(column) for column in zip(*pending, strict=True))
        pending.clear()
        row, order = row.sort(stable=True)
        lengths = row.bincount(minlength=len(users))
        slot = top + torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[row]
        size = (len(users), int(lengths.max()))
        scores = torch.cat([scores, scores.new_full(size, -torch.inf)], 1)
        ids = torch.cat([ids, ids.new_full(size, -1)], 1)
        scores[row, slot], ids[row, slot] = value[order], item[order]
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :top].contiguous(), ids.gather(1, order[:, :top])

    for tile in iterate_tiles(shard, users, all_users, excluded):
        floor = scores[:, -1:]
        limit = floor - tile.margin
        hit = (tile.peak() > limit.squeeze(1)).nonzero().squeeze(1)  # soon few users: most tiles have no new best items
        best = tile.upper_bounds(hit)
        many, row, column = above_threshold(best, limit[hit])
        dense, row = hit[many], hit[row]
        value, error = tile.pair_scores(row, column)
        better = value > floor[row, 0] - error
        row, column, value = row[better], column[better], value[better]
        if tile.precision == "bf16":
            value = exact_scores(tile.users[row], tile.items[column], tile.how).float()
        if len(dense):
            values, columns = tile.row_scores(dense, best[many]).sort(dim=1, descending=True, stable=True)
            values, columns = values[:, :top], columns[:, :top]
            better = values > floor[dense]
            row = torch.cat([row, dense.unsqueeze(1).expand_as(values)[better]])
            column, value = torch.cat([column, columns[better]]), torch.cat([value, values[better]])
        pending.append((row, value, column + tile.start + shard.first))
        num_pending += len(row)
        if num_pending > len(users) * top / 4:
            merge()
            num_pending = 0
    if num_pending:
        merge()
    return scores, ids
