"""The losses of the read-out head in plain NumPy, one user at a time."""

import numpy as np


def unit(vector):
    return vector / np.sqrt(sum(value**2 for value in vector))


def retrieval(users, targets, items):
    """Mean cross-entropy of each user's target over all items, in nats."""
    total = 0.0
    for user, target in zip(users, targets, strict=True):
        scores = [user @ item for item in items]
        total += -scores[target] + np.log(sum(np.exp(score) for score in scores))
    return total / len(users)


def distillation(students, teachers):
    """Mean over users and coordinates of the squared difference of unit vectors."""
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        total += sum((a - b) ** 2 for a, b in zip(unit(student), unit(teacher), strict=True)) / len(student)
    return total / len(students)


def uniformity(vectors):
    """Mean of exp(-2 |a - b|²) over the pairs of unit vectors."""
    values = []
    for second in range(len(vectors)):
        for first in range(second):
            difference = unit(vectors[first]) - unit(vectors[second])
            values.append(np.exp(-2 * (difference @ difference)))
    return np.mean(values)
