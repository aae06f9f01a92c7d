"""Edits after which another answer is due: numbers, dates, units, negation, names, scope."""

import re
from collections.abc import Callable
from random import Random

_OPPOSITES = [
    line.split("|")
    for line in """enable|disable
turn on|turn off
increase|decrease
raise|lower
open|close
add|remove
start|stop
activate|deactivate
before|after
above|below
over|under
more than|less than
most|least
best|worst
cheapest|most expensive
with|without
always|never
accept|decline
accepted|rejected
approved|denied
allow|forbid
allowed|prohibited
allowed|banned
send|receive
sent|received
buy|sell
upload|download
import|export
import|extract
lock|unlock
freeze|unfreeze
block|unblock
deposit|withdraw
top up|withdraw from
credit|debit
upgrade|downgrade
install|uninstall
first|last
early|late
earliest|latest
maximum|minimum
highest|lowest
inside|outside
domestic|international
online|in person
online|in store
online|by post
physical|virtual
new|old
morning|evening
arrive|depart
arrival|departure
check-in|check-out
pick up|drop off
included|excluded
covered|excluded
compulsory|optional
public|private
temporary|permanent
personal|business
incoming|outgoing
safe|dangerous
possible|impossible
save|spend
lend|borrow
win|lose
pass|fail
hot|cold
big|small
long|short
ascending|descending
healthy|unhealthy
legal|illegal
pending|completed
successful|failed
free|paid
advantages|disadvantages
benefits|risks
grow|shrink
lost|found
used|unused
pause|resume
confirm|cancel
renew|cancel
join|leave
keep|cancel
monthly|yearly
daily|weekly
hourly|daily
tenant|landlord
employer|employee
buyer|seller
parent|child
teacher|student
full-time|part-time
left|right
north|south""".splitlines()
]
_DATES = [
    group.split()
    for group in (
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "January February March April May June July August September October November December",
        "today tomorrow yesterday",
        "morning afternoon evening",
        "spring summer autumn winter",
        "day week month year",
        "days weeks months years",
        "minutes hours days",
        "first second third fourth",
        "two three four five six ten twelve",
        "am pm",
    )
]
_UNITS = [
    group.split()
    for group in (
        "MB GB TB", "kg g lbs", "km miles metres", "dollars euros pounds yen", "USD GBP EUR AUD",
        "$ £ €", "litres gallons", "Celsius Fahrenheit", "cm inches feet", "mg g ml",
    )
]  # fmt: skip
_ENTITIES = [
    [word.strip() for word in group.split(",")]
    for group in (
        "London, Paris, Berlin, Rome, Madrid, Oslo, Chicago, Dublin, Leeds, Manchester, Bristol",
        "France, Spain, Italy, Japan, Canada, Norway, Brazil, Germany, India, England, Scotland",
        "US, UK, EU, Australia, China, Russia",
        "Visa, Mastercard, American Express, PayPal, Klarna, Apple Pay, Google Pay",
        "Windows, macOS, Linux, Android, iPhone, iPad",
        "Python, Java, JavaScript, Rust, Ruby, Go, C++",
        "Microsoft, Apple, Google, Amazon, Facebook, Samsung, Netflix, IBM",
        "Salesforce, HubSpot, Slack, Jira, Trello, Notion, Asana, Mailchimp",
        "AWS, Azure, Google Cloud, Heroku",
        "English, French, German, Spanish, Polish, Arabic",
        "card, account, phone, app, PIN, passcode",
        "transfer, card payment, direct debit, cash withdrawal, top-up, refund",
        "bank transfer, cheque, cash, credit card",
        "dog, cat, rabbit, parrot, hamster", "chicken, beef, fish, pork, tofu",
        "pool, gym, sauna, bar, spa", "bus, train, plane, ferry, taxi", "flu, measles, malaria",
        "Sarah, Tom, Anna, James, Sam, Maria, Ahmed", "Tesco, Aldi, IKEA, ASOS, Sainsbury's",
        "email address, phone number, home address, surname", "laptop, tablet, printer, router",
        "aspirin, paracetamol, ibuprofen, codeine", "pet, car, travel, life",
        "gym, library, museum, restaurant, hotel, cinema",
        "mortgage, loan, overdraft, pension, ISA", "father, mother, brother, sister",
        "biology, physics, chemistry, history, law, medicine", "breakfast, lunch, dinner",
    )
]  # fmt: skip
_SCOPES = (
    "for my {}", "for a {}", "on behalf of my {}", "if I am a {}", "with my {}",
)  # fmt: skip
_PEOPLE = [
    "colleague",
    "child",
    "partner",
    "friend",
    "daughter",
    "mother",
    "company",
    "team",
    "tenant",
    "customer",
    "boss",
    "student",
    "pensioner",
    "contractor",
    "baby",
    "dog",
    "neighbour",
    "landlord",
    "business",
    "visitor",
]
_ADDED = (
    "abroad", "in children", "in babies", "online", "by post", "on weekends", "at night", "in bulk",
    "outside the EU",
    "after a year", "without a card", "in an emergency", "for free", "as a student",
    "by phone", "on a public holiday", "with an expired passport", "on Android", "in advance",
    "from another country", "for a group", "more than once", "in another currency", "twice",
)  # fmt: skip
_MINE = [
    "new",
    "old",
    "first",
    "second",
    "joint",
    "business",
    "child's",
    "colleague's",
    "partner's",
    "spare",
    "stolen",
    "expired",
]
_COMPOUNDS = tuple(
    line.split("|")
    for line in """account|account number
account|joint account
card|card reader
card|business card
card|virtual card
email|email signature
password|password manager
phone|phone case
order|bulk order
bank|bank statement
transfer|transfer limit
payment|payment reference
refund|refund policy
train|train driver
hotel|hotel voucher
ticket|season ticket
licence|provisional licence
car|rental car
house|summer house
tax|road tax
pool|paddling pool
delivery|delivery driver
list|linked list
file|log file
commit|merge commit
potatoes|sweet potatoes
milk|almond milk
rice|brown rice
dog|guide dog
insurance|life insurance
loan|student loan
money|pocket money
exchange|exchange student
top up|auto top up
app|beta app
cash|cash advance
fee|late fee
identity|business identity
PIN|PIN pad
passport|child passport
visa|work visa
flight|connecting flight
jacket|leather jacket
laptop|laptop battery
table|pivot table
function|lambda function
user|guest user
project|archived project""".splitlines()
)
_SECOND = ("my", "the", "a")


def number(text: str, rng: Random) -> str:
    """Another number, also one that looks much like it."""
    found = list(re.finditer(r"\d+", text))
    if not found:
        return text
    match = rng.choice(found)
    digits = match[0]
    swapped = digits[:-2] + digits[-2:][::-1]
    value = int(digits)
    options = {
        f"{value}0", swapped, str(value + rng.randrange(1, 9)), str(value * 2), f"1{digits}",
               str(max(1, value // 2)), str(rng.randrange(1, 2 * value + 9)),
    } - {digits}  # fmt: skip
    return text[: match.start()] + rng.choice(sorted(options)) + text[match.end() :]


def _from_groups(groups: list[list[str]]) -> Callable[[str, Random], str]:
    def swap(text: str, rng: Random) -> str:
        hits = [
            (match, group)
            for group in groups
            for word in group
            for match in re.finditer(rf"(?<![\w'-]){re.escape(word)}(?![\w-])", text)
        ]
        if not hits:
            return text
        match, group = rng.choice(hits)
        others = [word for word in group if word != match[0]]
        return text[: match.start()] + rng.choice(others) + text[match.end() :]

    return swap


date = _from_groups(_DATES)
unit = _from_groups(_UNITS)
entity = _from_groups(_ENTITIES)
opposite = _from_groups(_OPPOSITES)


_NOT = re.compile(r"\b(do|does|did|is|are|was|were|have|has|can|could|should|would)n['\u2019]t\b")


def negation(text: str, rng: Random) -> str:
    """Put a negation in, or take one out."""
    taken = _NOT.sub(r"\1", text, count=1)
    taken = re.sub(r"\bnot ", "", taken, count=1) if taken == text else taken
    if taken != text:
        return taken
    for pattern, negated in rng.sample(_NEGATED, len(_NEGATED)):
        changed = re.sub(pattern, negated, text, count=1, flags=re.IGNORECASE)
        if changed != text:
            return changed
    return text


_NEGATED = [
    (r"\bhow (do|can|should) i (?=\w)", r"How \1 I not "),
    (r"\bhow (do|can) i (?=\w)", r"How \1 I avoid having to "),
    (r"\bhow (do|can) i (?=\w)", r"How \1 I stop people who "),
    (r"\b(is|are|was|were) (my|the|it|there|this)\b", r"\1 \2 not"),
    (r"\bi (want|need|have|got|see|received|understand)\b", r"I do not \1"),
    (r"\bcan i\b", "Can I not"),
    (r"\b(should) i\b", "Should I stop trying to"),
    (r"\b(does|do|did) (the|my|it|you|i)\b", r"\1 \2 not"),
    (r"\b(will|would) (the|my|it|you|i)\b", r"\1 \2 not"),
    (r"\bwith\b", "without"),
    (r"\bi'm\b", "I'm not"),
    (r"\bmy (\w+) (works|arrived|is|was)\b", r"my \1 never \2"),
]


def scope(text: str, rng: Random) -> str:
    """Ask for somebody or something more special."""
    body, mark = (text[:-1], "?") if text.endswith("?") else (text.rstrip("."), "")
    if rng.random() < 0.5:
        for one, other in rng.sample(_COMPOUNDS, len(_COMPOUNDS)):
            if re.search(rf"(?<![\w-]){one}(?![\w-])", body):
                return re.sub(rf"(?<![\w-]){one}(?![\w-])", other, body, count=1) + mark
    if rng.random() < 0.35:
        for word in rng.sample(_SECOND, len(_SECOND)):
            if re.search(rf"\b{word} (?=\w)", body):
                adjective = rng.choice(_MINE)
                word_now = "an" if word == "a" and adjective[0] in "aeiou" else word
                return re.sub(rf"\b{word} (?=\w)", f"{word_now} {adjective} ", body, count=1) + mark
    if rng.random() < 0.5:
        return f"{body} {rng.choice(_SCOPES).format(rng.choice(_PEOPLE))}{mark}"
    return f"{body} {rng.choice(_ADDED)}{mark}"


_PLACE = r"((?:my |the |a )?[\w€£$]+)"
_FROM_TO = re.compile(rf"\b(from|before|over|than) {_PLACE} (to|into|and) {_PLACE}", re.IGNORECASE)


def direction(text: str, rng: Random) -> str:
    """Exchange what is on the two sides of a direction."""
    found = _FROM_TO.search(text)
    if not found or found[2].lower() == found[4].lower():
        return text
    swapped = f"{found[1]} {found[4]} {found[3]} {found[2]}"
    return text[: found.start()] + swapped + text[found.end() :]


EDITS: dict[str, tuple[Callable[[str, Random], str], ...]] = {
    "number_date": (number, date, unit),
    "negation": (negation, opposite, opposite),
    "entity_swap": (entity, direction, entity),
    "scope": (scope,),
}
