"""The best N of a shard for each user, tile by tile."""

import torch

from dist_imsr.evaluation.tiles import Pairs, Shard, candidates, exact, tiles_of


def best_items(shard: Shard, users: torch.Tensor, top: int, excluded: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of a shard for each user; of equal scores the smaller id comes first.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        top: N.
        excluded: items that a user must not get.

    Returns:
        Scores ``[B, N]`` in descending order, and ids ``[B, N]`` int64; -inf and -1 where there are no more items.
    """
    if not users.shape[1]:  # to whom all items are alike, as they are to one interest of length zero
        users = users.new_zeros(len(users), 1, users.shape[2])
    scores = users.new_full((len(users), top), -torch.inf)
    ids = torch.full((len(users), top), -1, device=users.device)
    waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    everybody = torch.arange(len(users), device=users.device)
    held = 0

    def merge() -> None:
        nonlocal scores, ids
        row, found, place = (torch.cat(column) for column in zip(*waiting, strict=True))
        waiting.clear()
        row, order = row.sort(stable=True)
        lengths = row.bincount(minlength=len(users))
        slot = top + torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[row]
        size = (len(users), int(lengths.max()))
        scores = torch.cat([scores, scores.new_full(size, -torch.inf)], 1)
        ids = torch.cat([ids, ids.new_full(size, -1)], 1)
        scores[row, slot], ids[row, slot] = found[order], place[order]
        scores, kept = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :top].contiguous(), ids.gather(1, kept[:, :top])

    for tile in tiles_of(shard, users, everybody, excluded):
        floor = scores[:, -1:]
        limit = floor - tile.margin(tile.precision)
        hit = (tile.peak() > limit.squeeze(1)).nonzero().squeeze(1)  # soon few: most tiles hold nothing for most users
        best = tile.best(hit)
        many, row, column = candidates(best, limit[hit])
        dense, row = hit[many], hit[row]
        value, error = tile.near(row, column)
        real = value > floor[row, 0] - error
        row, column, value = row[real], column[real], value[real]
        if tile.precision == "bf16":
            value = exact(tile.users[row], tile.items[column], tile.how).float()
        if len(dense):
            every, place = tile.dense(dense, best[many]).sort(dim=1, descending=True, stable=True)
            every, place = every[:, :top], place[:, :top]
            real = every > floor[dense]
            row = torch.cat([row, dense.unsqueeze(1).expand_as(every)[real]])
            column, value = torch.cat([column, place[real]]), torch.cat([value, every[real]])
        waiting.append((row, value, column + tile.start + shard.first))
        held += len(row)
        if held > len(users) * top / 4:
            merge()
            held = 0
    if held:
        merge()
    return scores, ids
