"""Slow float64 references, written from the equations with loops and no masks."""

import math

import numpy as np

Vector = np.ndarray


def softmax(values: Vector) -> Vector:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def squash(vector: Vector) -> Vector:
    """phi of Eq. 4."""
    square = float(vector @ vector)
    return vector * 0 if square == 0 else square / (1 + square) * vector / math.sqrt(square)


def route(
    items: Vector,
    start: Vector,
    transform: Vector,
    iterations: int,
    normalise: str,
    carried: Vector | None = None,
    logits: Vector | None = None,
) -> Vector:
    """Eq. 3-4 with errata E1, E2 and E10 for one user: items [L, d], start [K, d], transform [d, d] -> [K, d].

    carried [K] counts the stored vectors; logits [K, L] are MIND's.
    """
    votes = np.stack([transform @ item for item in items])
    interests = start
    carried = np.zeros(len(start)) if carried is None else carried
    logits = np.zeros((len(start), len(items))) if logits is None else logits
    for _ in range(iterations):
        agreement = np.array([[vote @ h for h in interests] for vote in votes]) + logits.T  # [L, K]
        weights = np.zeros_like(agreement)
        if normalise == "interests":
            for i in range(len(items)):
                weights[i] = softmax(agreement[i])
        else:
            for k in range(len(start)):
                weights[:, k] = softmax(agreement[:, k])
        interests = np.stack(
            [
                squash(sum(weights[i, k] * votes[i] for i in range(len(items))) + carried[k] * start[k])
                for k in range(len(start))
            ]
        )
    return interests


def self_attention(
    items: Vector, start: Vector, queries: Vector, transform: Vector, positions: Vector | None, carried: Vector
) -> Vector:
    """Eq. 7-9 with erratum E10 for one user: items [L, d], start [K, d], queries [K, d_a], transform [d_a, d]."""
    interests = []
    for k in range(len(start)):
        rows, logits = list(items), []
        for i in range(len(items)):
            placed = items[i] if positions is None else items[i] + positions[i]
            logits.append(queries[k] @ np.tanh(transform @ placed))
        if carried[k] > 0:
            rows.append(start[k])
            logits.append(queries[k] @ np.tanh(transform @ start[k]) + math.log(carried[k]))
        interests.append(sum(weight * row for weight, row in zip(softmax(np.array(logits)), rows, strict=True)))
    return np.stack(interests)


def divergence(interests: Vector, item: Vector) -> float:
    """KL(uniform || p) of Eq. 11 from its definition: interests [K, d], item [d]."""
    found = softmax(np.array([interest @ item for interest in interests]))
    uniform = 1 / len(interests)
    return sum(uniform * math.log(uniform / probability) for probability in found)


def projected(existing: Vector, new: Vector) -> Vector:
    """E4: new [d] less its projection onto the rows of existing [K, d], by the singular vectors of M."""
    left, values, _ = np.linalg.svd(existing.T, full_matrices=False)
    ridge = 1e-6 * (1 + (values**2).sum())
    for column, value in zip(left.T, values, strict=True):
        if value > 0:
            new = new - column * (column @ new) * value**2 / (value**2 + ridge)
    return new


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(teacher: Vector, student: Vector) -> float:
    return -sum(p * math.log(q) for p, q in zip(teacher, student, strict=True))


def retention(name: str, before: Vector, now: Vector, target: Vector, negatives: Vector, tau: float) -> float:
    """A retainer's loss for one target: before [K', d], now [K, d] whose first K' are the existing interests."""
    total, old = 0.0, len(before)
    if name == "kd":
        for k in range(old):
            p, q = sigmoid(before[k] @ target / tau), sigmoid(now[k] @ target / tau)
            total += -p * math.log(q) - (1 - p) * math.log(1 - q)
    elif name == "dir":
        total = sum(float((now[k] - before[k]) @ (now[k] - before[k])) for k in range(old))
    elif name == "kd1":
        total = cross_entropy(softmax(before @ target / tau), softmax(now[:old] @ target / tau)) if old else 0.0
    else:
        candidates = np.stack([target, *negatives])
        for k in range(old):
            total += cross_entropy(softmax(candidates @ before[k] / tau), softmax(candidates @ now[k] / tau))
        if name == "kd3":
            total *= old / len(now)
    return total


def attend(interests: Vector, target: Vector) -> Vector:
    """v_u of Eq. 5: interests [K, d], target [d] -> [d]."""
    weights = softmax(np.array([interest @ target for interest in interests]))
    return sum(weight * interest for weight, interest in zip(weights, interests, strict=True))


def score(interests: Vector, item: Vector, how: str) -> float:
    """E8 for one user and item."""
    if len(interests) == 0:
        return 0.0
    if how == "max":
        return max(float(interest @ item) for interest in interests)
    return float(attend(interests, item) @ item)


def sampled_softmax(user: Vector, target: Vector, negatives: Vector, target_id: int, negative_ids: list[int]) -> float:
    """Eq. 6 with E6 for one target."""
    positive = math.exp(user @ target)
    others = [
        math.exp(user @ negative)
        for negative, number in zip(negatives, negative_ids, strict=True)
        if number != target_id
    ]
    return -math.log(positive / (positive + sum(others)))


def rank(interests: Vector, catalogue: Vector, target: int, how: str, excluded: list[int]) -> float:
    """1 + the items that score higher + half of those that tie; infinite if the target itself is excluded."""
    if target in excluded:
        return math.inf
    scores = [score(interests, item, how) for item in catalogue]
    others = [value for number, value in enumerate(scores) if number != target and number not in excluded]
    higher = sum(value > scores[target] for value in others)
    return 1 + higher + sum(value == scores[target] for value in others) / 2


def ndcg(ranks: list[float], top: int) -> float:
    """NDCG@N with the ideal of min(N, number of targets) hits (E9)."""
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= top)
    return gain / sum(1 / math.log2(place + 1) for place in range(1, min(top, len(ranks)) + 1))


def linear_attention(items: Vector, weights: dict[str, Vector], interests: int) -> Vector:
    """LimaRec for one user: items [L, d] and the weights of queries, keys and values -> [K, d]."""

    def phi(part: str, k: int, item: Vector) -> Vector:
        projected = weights[f"{part}.weight"] @ item + weights[f"{part}.bias"]
        return np.array([x + 1 if x > 0 else math.exp(x) for x in np.split(projected, interests)[k]])

    read = []
    for k in range(interests):
        products, totals = 0.0, 0.0
        for item in items:
            products = products + np.outer(phi("key", k, item), weights["value.weight"] @ item)
            totals = totals + phi("key", k, item)
        query = phi("query", k, items[-1])
        read.append(query @ products / (query @ totals))
    return np.stack(read)


def gru(cell: str, weights: dict[str, Vector], given: Vector, hidden: Vector) -> Vector:
    """A gated recurrent unit with gates in the order reset, update, candidate."""
    reset_in, update_in, new_in = np.split(weights[f"{cell}.weight_ih"] @ given + weights[f"{cell}.bias_ih"], 3)
    reset_own, update_own, new_own = np.split(weights[f"{cell}.weight_hh"] @ hidden + weights[f"{cell}.bias_hh"], 3)
    reset, update = (1 / (1 + np.exp(-(a + b))) for a, b in ((reset_in, reset_own), (update_in, update_own)))
    return (1 - update) * np.tanh(new_in + reset * new_own) + update * hidden


def memory_network(items: Vector, weights: dict[str, Vector], chosen: int) -> tuple[Vector, Vector]:
    """MIMN for one user: items [L, d], so many channels moved by each -> interests [K, d], write weights so far [K]."""
    rows = weights["rows"].copy()
    slots, width = rows.shape
    channels = [np.zeros(weights["induction.weight_hh"].shape[1]) for _ in range(slots)]
    hidden, read, used = np.zeros(weights["controller.weight_hh"].shape[1]), np.zeros(width), np.zeros(slots)
    for item in items:
        hidden = gru("controller", weights, np.concatenate([item, read]), hidden)
        out = weights["head.weight"] @ hidden + weights["head.bias"]
        read_key, write_key, erase, add = np.split(out[:-2], 4)
        erase, add = 1 / (1 + np.exp(-erase)), np.tanh(add)

        def address(key: Vector, strength: float, rows: Vector = rows) -> Vector:
            cosines = [key @ row / math.sqrt((key @ key) * (row @ row)) for row in rows]
            return softmax(math.log1p(math.exp(strength)) * np.array(cosines))

        reading, writing = address(read_key, out[-2]), address(write_key, out[-1])
        read = sum(reading[i] * rows[i] for i in range(slots))
        writing = writing * softmax(weights["balance"] @ (used / max(used.sum(), 1)))
        writing = writing / writing.sum()
        used = used + writing
        rows = np.stack([rows[i] * (1 - writing[i] * erase) + writing[i] * add for i in range(slots)])
        for i in np.argsort(-reading)[:chosen]:
            channels[i] = gru("induction", weights, np.concatenate([item, rows[i]]), channels[i])
    return np.stack(
        [weights["output.weight"] @ np.concatenate(pair) for pair in zip(rows, channels, strict=True)]
    ), used


def utilisation(used: Vector) -> float:
    """MIMN's regularisation for one user: the variance of the slots' shares in all writes, summed over slots."""
    shares = used / used.sum()
    return sum((share - shares.mean()) ** 2 for share in shares)
