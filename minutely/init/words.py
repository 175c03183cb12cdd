"""What names of columns say: the words in them, and which words name users, items, requests, times and actions."""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


USERS = _set(
    "user uid member customer visitor account client person reader viewer listener player shopper buyer guest device cookie"
)
ITEMS = _set(
    "item video article product sku movie film news ad song track asin doc document post listing creative photo "
    "book game offer recipe content pin app job hotel restaurant show candidate"
)
REQUESTS = _set("request req rid impression slate query search pageview auction trace serve session")
IDS = _set("id uid key code token uuid guid no")
TIMES = _set("time timestamp ts date datetime at dt when day")
ACTION_COLUMNS = _set("action event behavior behaviour interaction activity")
ACTIONS = _set(
    "click clicked like liked follow comment forward share shared hate dislike purchase purchased buy bought order "
    "ordered cart conversion convert converted install download downloaded watch watched finish finished complete "
    "completed view viewed play played save saved favorite favourite bookmark label target engaged enter subscribe "
    "reply retweet transaction addtocart booking booked apply applied skip skipped hide hidden report reported dismiss "
    "dismissed mute muted reject rejected open opened read"
)
SHOWN = _set("view impression exposure show shown display served")
"""Actions that say no more than that something was shown."""
UNWANTED = _set("hate dislike skip skipped hide hidden report reported dismiss dismissed mute muted reject rejected")
RATINGS = _set("rating rate stars star score grade")
STAYS = _set("play watch dwell stay view read listen spent")
DURATIONS = _set("time duration ms sec second seconds millis minutes length dwell")
DELAYS = _set("delay latency wait")
AMOUNTS = _set("amount revenue spend paid gmv value")
PAST = _set(
    "upload uploaded birth added created create publish published release released register registered signup join "
    "modified updated first"
)
"""Of times: they say since when something is, not when it was served."""
PLACES = _set("position rank pos slot")
SLATES = _set("shown inview item items impression candidate candidates slate list served")
CALENDAR = _set("day date hour hourmin minute month weekday week year")
QUANTITIES = _set(
    "num number count price duration days size length amount age width height total sum avg mean distance weight "
    "ctr cvr"
)
KINDS = _set(
    "onehot feat cat category class level group bucket segment bin type kind region city country brand zip postcode"
)
LISTED = _set("tag tags genre genres category categories topic topics history keyword keywords ids interests")

_KNOWN = USERS | ITEMS | REQUESTS
_SINGULAR = _KNOWN | IDS | ACTIONS | PLACES | STAYS | DELAYS | RATINGS | AMOUNTS | QUANTITIES | KINDS
"""Words whose plurals say the same, as lists are called. Times and dates are not among them: ``days`` is a number of them."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TYPE = re.compile(r":(token|token_seq|float|float_seq)$")  # as RecBole's files have them


def plain_name(column: str) -> str:
    """A column's name without what some programs put behind it: ``user_id:token`` is ``user_id``."""
    return _TYPE.sub("", column)


def words(column: str) -> list[str]:
    """The words of a name, in lower case and singular where that is simple.

    >>> from minutely.init.words import words
    >>> words("userId"), words("article_ids_clicked"), words("itemid:token")
    (['user', 'id'], ['article', 'id', 'clicked'], ['item', 'id'])
    """
    found: list[str] = []
    for word in re.findall(r"[^\W_]+", _CAMEL.sub("_", plain_name(column)).lower()):
        single = word[:-1] if len(word) > 2 and word.endswith("s") and word[:-1] in _SINGULAR else word
        stem = single.removesuffix("id")
        found += [stem, "id"] if stem in _KNOWN | ACTIONS and stem != single else [single]
    return found


def names(column: str, known: frozenset[str]) -> bool:
    """Whether a name has one of some words."""
    return not known.isdisjoint(words(column))


def is_id(column: str) -> bool:
    """Whether a name says that its values are ids: ``item_id``, or the word for a thing alone, as in ``item``."""
    found = words(column)
    return not IDS.isdisjoint(found) or (len(found) == 1 and found[0] in _KNOWN)


def identifier(text: str) -> str:
    """A name for a feature, a label or a side table, out of any text."""
    name = re.sub(r"\W+", "_", _CAMEL.sub("_", plain_name(text)), flags=re.ASCII).strip("_").lower()
    return name if re.match(r"[a-z]", name) else f"column_{name}".rstrip("_")
