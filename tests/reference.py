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


def rank(interests: Vector, catalogue: Vector, target: int, how: str, barred: list[int]) -> float:
    """1 + the items that score higher + half of those that tie; infinite where the target itself is barred."""
    if target in barred:
        return math.inf
    scores = [score(interests, item, how) for item in catalogue]
    others = [value for number, value in enumerate(scores) if number != target and number not in barred]
    higher = sum(value > scores[target] for value in others)
    return 1 + higher + sum(value == scores[target] for value in others) / 2


def ndcg(ranks: list[float], top: int) -> float:
    """NDCG@N with the ideal of min(N, number of targets) hits (E9)."""
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= top)
    return gain / sum(1 / math.log2(place + 1) for place in range(1, min(top, len(ranks)) + 1))
