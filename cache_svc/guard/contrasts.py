"""Words that never mean the same: antonyms, and members of one closed group."""

from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import permutations

from cache_svc.guard.words import stem

# One line a contrast: every word on one side of a bar contrasts with every word
# on every other side.
_CONTRASTS = """
enable activate | disable deactivate
on | off
in | out
up | down
open opening reopen | close closing shut
start begin launch commence | stop end finish quit terminate
start continue resume keep | pause cancel suspend stop quit
cancel | confirm renew keep continue
pause | resume unpause
increase raise grow higher rise boost gain | decrease lower reduce drop fall diminish
bigger more larger expand | shrink less fewer smaller cut
maximum most highest max largest biggest | minimum least lowest min smallest fewest
best top greatest | worst bottom
more | less fewer
high higher | low lower
before prior | after following since
early earlier earliest | late later latest
first | last final
old older oldest | new newer newest latest
old | young
previous last past prior | next upcoming future following
yesterday | today | tomorrow | tonight
import | export
upload | download
input | output
send | receive
push | pull
push | pop
read | write
load | unload save
encrypt encode | decrypt decode
compress zip | decompress unzip extract
add insert include append | remove delete exclude erase subtract
attach | detach
create make build | delete destroy remove
install | uninstall remove
buy purchase | sell rent
borrow | lend
lend | owe
deposit | withdraw withdrawal
credit | debit
income revenue earn | expense spend cost
profit gain | loss
win | lose
pass | fail
succeed success | fail failure
accept approve agree allow | reject decline refuse deny disagree
allow permit enable | forbid ban prohibit block prevent deny disallow
allowed permitted | forbidden banned prohibited
approve | reject deny revoke
grant | revoke
lock | unlock
block | unblock
mute silence | unmute
hide | show reveal display unhide
show | hide
follow | unfollow
subscribe | unsubscribe
archive | unarchive restore
freeze | unfreeze thaw
pin | unpin
join | leave quit
enter | exit leave
arrive arrival | depart departure leave
come | go
login signin | logout signout
opt | optout
enrol enroll register | withdraw unenrol unregister deregister
connect | disconnect
mount | unmount
bind | unbind
link | unlink
wrap | unwrap
undo | redo
upgrade | downgrade
promote | demote
hire | fire dismiss
employ employed | unemployed selfemployed
attack | defend
love like | hate dislike
friend ally | enemy foe
happy glad | sad unhappy angry
good great better best | bad poor worse worst
benefit advantage pro upside strength | drawback disadvantage con downside weakness risk
pros | cons
positive | negative
correct right true | incorrect wrong false
true | false
right | left
right | wrong
legal lawful | illegal unlawful
valid | invalid
safe | unsafe dangerous risky
healthy | unhealthy
possible | impossible
able | unable
necessary required mandatory compulsory must | unnecessary optional voluntary
included | excluded
covered | excluded uncovered
public | private secret
visible | invisible hidden
internal inside indoor inner | external outside outdoor outer
indoor | outdoor
domestic national local home | international foreign abroad overseas
local | remote global
online | offline instore
online digital electronic | paper postal
remote | onsite
full | empty
full | partial half
whole | partial
all every each | none some
always | never sometimes
everyone | nobody
anything something | nothing
with | without
hot warm | cold cool
heat heating | cool cooling
wet | dry
hard difficult tough | easy simple soft
hard | soft
fast quick rapid | slow
speed accelerate | slow slowdown
long longer longest | short shorter shortest brief
big large huge | small little tiny
tall | short
wide broad | narrow
thick | thin
deep | shallow
heavy | light
dark | light bright
strong | weak
loud noisy | quiet silent
cheap inexpensive cheapest affordable | expensive costly priciest dearest
rich wealthy | poor
free | paid premium enterprise
free | pay
over above exceeding | under below beneath
above | below
inside within | outside beyond
within | after
front | back rear
top | bottom
ascending asc | descending desc
oldest | newest latest
forward | backward backwards reverse
horizontal | vertical
row | column
north | south | east | west
northern | southern | eastern | western
left | right
male man men boy boys | female woman women girl girls
husband | wife
father dad | mother mum mom
brother | sister
son | daughter
king | queen
parent | child
adult adults | child children kid kids baby babies infant
buyer purchaser customer | seller vendor
landlord owner | tenant renter lodger
employer boss | employee worker staff
teacher tutor | student pupil learner
doctor | patient
lender | borrower
sender | recipient receiver
host | guest
client | server
sync synchronous | async asynchronous
mutable | immutable
static | dynamic
singular | plural
past | present | future
synonym | antonym
question | answer
cause | effect consequence
problem | solution
theory | practice
supply | demand
major | minor
majority | minority
primary | secondary
undergraduate bachelor | postgraduate graduate master masters phd doctorate
temporary | permanent
fixed | variable flexible
single | joint married | double
single | multiple
individual personal | business corporate commercial company team family
personal | commercial business
member | nonmember guest visitor
resident | visitor | nonresident
fulltime | parttime
weekday | weekend
day daytime | night nighttime
morning | afternoon | evening | night
breakfast | lunch | dinner supper
daily | weekly | monthly | yearly annual annually | hourly | quarterly
spring | summer | autumn fall | winter
return | single
return refund | exchange
checkin | checkout
pickup collection collect | delivery deliver dropoff
departure | arrival
takeoff | landing
onion | garlic
vegetarian vegan | meat
raw | cooked
sweet | sour | bitter | salty
spicy | mild
alive living | dead
birth born | death died
marry marriage married | divorce divorced
war | peace
victory | defeat
freedom | slavery
accept | ignore
remember | forget
know | unknown
known | unknown
lost lose | found find
miss | catch
give | take get receive
teach | learn
ask | answer
sit | stand
sleep | wake
build | demolish
break | fix repair mend
damage | repair
sick ill unwell | healthy well
weight | height
loss lose losing | gain gaining
tighten | loosen
tight | loose
fill | empty drain
charge | discharge
sharpen | blur
zoom | unzoom
expand | collapse
maximize maximise | minimize minimise
merge combine | split separate
lift | lower
sunrise | sunset
inflation | deflation
surplus | deficit
asset | liability
debtor | creditor
bull bullish | bear bearish
long | short
overweight | underweight
overpay | underpay
overcharge | undercharge
hyper hyperthyroid | hypo hypothyroid
hypertension | hypotension
acute | chronic
benign | malignant
oral | topical
celsius | fahrenheit
metric | imperial
latitude | longitude
odd | even
prime | composite
numerator | denominator
integer int | float decimal string
json | xml | yaml | csv | html | markdown | pdf
python | java | javascript | typescript | ruby | golang | rust | kotlin | swift
windows | macos mac | linux | android | ios iphone
frontend | backend
http | https
ipv4 | ipv6
tcp | udp
sql | nosql
encode | decode
serialize | deserialize
commit | rollback revert
push | fetch
allocate | deallocate free
lossless | lossy
stateful | stateless
physics | chemistry | biology | maths mathematics
english | french | spanish | german | italian | portuguese | chinese | japanese | russian | arabic
president | minister
mayor | governor
bus | train | plane | taxi | tram
cat kitten | dog puppy
chicken | beef | pork | lamb | fish
tea | coffee
red | blue | green | yellow | orange | purple | black | white | pink | brown | grey gray
solved resolved | unsolved unresolved
accepted | rejected
read | unread
sent | received
"""

# Asking for a person is not asking for a place.
_QUESTIONS = """
who whom | when | where | why
"""

# Prefixes that turn a word into its opposite: lock and unlock, legal and illegal.
_OPPOSING_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "de", "mis", "anti", "counter")
_MIN_PREFIXED = 4


def _table(lines: str) -> dict[str, frozenset[str]]:
    """For each stem, the stems that contrast with it."""
    table: dict[str, set[str]] = {}
    for line in lines.strip().splitlines():
        sides = [{stem(word) for word in side.split()} for side in line.split("|")]
        for side, other in permutations(sides, 2):
            for word in side:
                table.setdefault(word, set()).update(other - {word})
    return {word: frozenset(others) for word, others in table.items()}


CONTRASTS = _table(_CONTRASTS + _QUESTIONS)
_NONE: frozenset[str] = frozenset()


def contrast(one: AbstractSet[str], other: AbstractSet[str]) -> str:
    """Two contrasting words, one said by each prompt only, or "".

    Args:
        one: stems that only the first prompt has.
        other: stems that only the second has.
    """
    for word in sorted(one):
        opposites = CONTRASTS.get(word, _NONE) & other
        if opposites:
            return f"{word} against {min(opposites)}"
    return _prefixed(one, other) or _prefixed(other, one)


def _prefixed(plain: AbstractSet[str], prefixed: AbstractSet[str]) -> str:
    if not plain:
        return ""
    for word in sorted(prefixed):
        for rest in _without_prefix(word):
            if rest in plain:
                return f"{rest} against {word}"
    return ""


@lru_cache(8192)
def _without_prefix(word: str) -> tuple[str, ...]:
    """What is left of a word without each prefix that it has."""
    rests = (word.removeprefix(prefix) for prefix in _OPPOSING_PREFIXES)
    return tuple(rest for rest in rests if rest != word and len(rest) >= _MIN_PREFIXED)
