"""What the flows in this folder call: plain functions, which know nothing of Millstream."""

import csv
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

HERE = Path(__file__).parent

# ---- orders.yaml: extract, transform, load --------------------------------------------------------


def extract(name):
    """Read a table."""
    with (HERE / name).open(newline="") as file:
        return list(csv.DictReader(file))


def transform(payload, currency):
    """Sum the orders of each customer; return them and what could not be read."""
    totals, refused = {}, []
    for row in payload:
        try:
            totals[row["customer"]] = totals.get(row["customer"], 0) + int(row["pieces"]) * Decimal(row["price"])
        except ArithmeticError:
            refused.append(row["order"])
    return {"totals": {name: f"{total} {currency}" for name, total in sorted(totals.items())}, "refused": refused}


def load(payload, refused, greeting):
    """Write a report."""
    lines = [f"{name}: {total}" for name, total in payload.items()]
    return "\n".join([greeting, *lines, f"refused: {', '.join(refused) or 'nothing'}"])


# ---- article.toml: a join, a choice and a loop ----------------------------------------------------


def draft(payload):
    """Write, or take what was written."""
    return payload


def spelling(payload):
    """Find words that are known to be wrong."""
    return [word for word in re.findall(r"\w+", payload) if word in {"teh", "recieve"}]


def length(payload):
    """Count words."""
    return len(payload.split())


def review(payload, draft):
    """Decide, once both have looked at it: it is published, or goes back."""
    if payload["spelling"]:
        return {"revise": {"text": draft, "wrong": payload["spelling"]}}
    return {"publish": f"{draft} ({payload['length']} words)"}


def revise(payload):
    """Mend one word, and begin again."""
    right = {"teh": "the", "recieve": "receive"}
    wrong = payload["wrong"][0]
    return {"draft": payload["text"].replace(wrong, right[wrong], 1)}


def publish(payload):
    """Hand it out."""
    return payload


# ---- words.json: a fan-out ------------------------------------------------------------------------


def texts(folder, pattern):
    """Return the paths of the texts."""
    return sorted(str(path) for path in (HERE / folder).glob(pattern))


def count(item):
    """Count the words of one text."""
    return dict(Counter(re.findall(r"[a-z]+", Path(item).read_text().lower())))


def most_common(payload, how_many):
    """Put all counts together."""
    total = Counter()
    for counts in payload:
        total.update(counts)
    return dict(total.most_common(how_many))
