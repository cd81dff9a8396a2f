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


def route(items: Vector, start: Vector, transform: Vector, iterations: int, normalise: str) -> Vector:
    """Eq. 3-4 with errata E1 and E2 for one user: items [L, d], start [K, d], transform [d, d] -> [K, d]."""
    votes = np.stack([transform @ item for item in items])
    interests = start
    for _ in range(iterations):
        agreement = np.array([[vote @ interest for interest in interests] for vote in votes])  # [L, K]
        weights = np.zeros_like(agreement)
        if normalise == "interests":
            for i in range(len(items)):
                weights[i] = softmax(agreement[i])
        else:
            for k in range(len(start)):
                weights[:, k] = softmax(agreement[:, k])
        interests = np.stack(
            [squash(sum(weights[i, k] * votes[i] for i in range(len(items)))) for k in range(len(start))]
        )
    return interests


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


def rank(interests: Vector, catalogue: Vector, target: int, how: str) -> float:
    """1 + the items that score higher + half of those that tie."""
    scores = [score(interests, item, how) for item in catalogue]
    higher = sum(value > scores[target] for value in scores)
    ties = sum(value == scores[target] for number, value in enumerate(scores) if number != target)
    return 1 + higher + ties / 2


def ndcg(ranks: list[float], top: int) -> float:
    """NDCG@N with the ideal of min(N, number of targets) hits (E9)."""
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= top)
    return gain / sum(1 / math.log2(place + 1) for place in range(1, min(top, len(ranks)) + 1))
