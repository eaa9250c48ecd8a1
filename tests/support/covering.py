"""Tables of options in which every pair of values of any two options occurs in some row (a covering array).

Bugs between options mostly need two of them, seldom three: 5 options of 4 values have 1,024 rows, and 16 hold all pairs.
Source: Cohen, Dalal, Fredman, Patton 1997, "The AETG system" (the greedy rule, here without its random choices).
"""

from itertools import combinations, product


def meetings(row, strength=2):
    """The pairs, or triples, of a row: {((option, its value), (option, its value)), ...}."""
    return set(combinations(row.items(), strength))


def wanted(options, strength=2):
    """All pairs, or triples, that there are. options: name -> list of values, which are hashable."""
    return [tuple(zip(names, values)) for names in combinations(options, strength)
            for values in product(*(options[name] for name in names))]


def gain(row, entry, missing):
    """How many of the missing pairs with this entry a row has, or may have once it is whole."""
    return sum(entry in meeting and all(row.get(name, value) == value for name, value in meeting) for meeting in missing)


def covering(options, strength=2):
    """Rows, dicts from names to values, so that every pair (strength 3: triple) of values occurs. The same rows every time.

    Each row begins with the first pair that is missing yet, and gets option by option the value that adds most pairs.
    """
    rows, missing = [], dict.fromkeys(wanted(options, strength))         # a set that keeps its order
    while missing:
        row = dict(next(iter(missing)))
        for name in [name for name in options if name not in row]:
            gains = [gain(row | {name: value}, (name, value), missing) for value in options[name]]
            row[name] = options[name][gains.index(max(gains))]
        rows.append({name: row[name] for name in options})
        for meeting in meetings(rows[-1], strength):
            missing.pop(meeting, None)
    return rows


def words(row):
    """A name for a row, for pytest."""
    return ", ".join(f"{name} {value}" for name, value in row.items())
