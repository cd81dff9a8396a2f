"""Baselines as loops in plain Python, written from their definitions: a score for each item, and ranks by counting."""

import math
from collections import Counter

from dist_imsr.evaluation.repeats import DECAYS

HELD_OUT, SHORTEST = 2, 3


def past_of(history, user, span):
    """A user's items in the spans up to one, the oldest first."""
    return [item for items in history[user][: span + 1] for item in items]


def trained_until(history, user, span):
    """A user's items in the spans up to one, without those of the last span that are held out of training."""
    last = history[user][span]
    return past_of(history, user, span - 1) + (last[:-HELD_OUT] if len(last) >= SHORTEST else last)


def validation_targets(history, span):
    """The second last item of a span, of each user with enough of them."""
    return {user: spans[span][-HELD_OUT] for user, spans in history.items() if len(spans[span]) >= SHORTEST}


def tested_users(history, span):
    """Users with a held-out target in a span who were known before, with their items there."""
    return {user: spans[span] for user, spans in history.items() if len(spans[span]) >= SHORTEST and any(spans[:span])}


def popular(history, spans):
    """The number of interactions in some spans by item."""
    return Counter(item for all_spans in history.values() for span in spans for item in all_spans[span])


def decayed(past, decay):
    """The decayed count of each item."""
    weights = Counter()
    for age, item in enumerate(reversed(past)):
        weights[item] += decay**age
    return weights


def own_first(past, decay, counts, items):
    """Scores: an item of the user's own is above all others, which have the numbers of their interactions."""
    weights, most = decayed(past, decay), max(counts.values(), default=0)
    return [most + 1 + weights[item] if item in weights else counts[item] for item in range(items)]


def best_decay(history, span, items, top):
    """The decay with the highest NDCG on the second last interactions of a span."""
    counts = popular(history, [span - 1])
    gains = []
    for decay in DECAYS:
        total = 0.0
        for user, target in validation_targets(history, span).items():
            found = rank(own_first(trained_until(history, user, span), decay, counts, items), target, range(items))
            total += 1 / math.log2(found + 1) if found <= top else 0.0
        gains.append(total)
    return DECAYS[max(range(len(DECAYS)), key=lambda place: (round(gains[place], 9), -place))]


def item_knn(history, user, span, decay, items):
    """The sum, over the user's items, of the cosine of the two items' users, weighted by the latest interaction."""
    met = {other: set(past_of(history, other, span)) for other in history}
    users = [{other for other in met if item in met[other]} for item in range(items)]
    weights = {}
    for age, item in enumerate(reversed(past_of(history, user, span))):
        weights.setdefault(item, decay**age)

    def cosine(one, two):
        both = len(users[one] & users[two])
        return both / math.sqrt(len(users[one]) * len(users[two])) if both else 0.0

    return [sum(weight * cosine(own, item) for own, weight in weights.items()) for item in range(items)]


def rank(scores, target, among):
    """1 + better + ties / 2; scores that differ by rounding alone are equal."""
    better = sum(scores[item] > scores[target] + 1e-9 for item in among)
    ties = sum(abs(scores[item] - scores[target]) <= 1e-9 for item in among if item != target)
    return 1 + better + ties / 2


def both_ranks(scores, target, past, items):
    """The rank among all items, and among those that the user has not met."""
    unseen = [item for item in range(items) if item not in past]
    return rank(scores, target, range(items)), math.inf if target in past else rank(scores, target, unseen)
