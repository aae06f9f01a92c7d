"""Which words of a prompt carry its meaning, and which of them mean the same."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from cache_svc.guard.words import Word, listed, stem

# Grammar, politeness and hesitation: a prompt asks the same with or without them.
_IDLE_WORDS = listed("""a an the this that these those some any such own
    i me my mine we us our ours you your yours he him his she her it its they them their theirs
    one ones someone somebody anyone anybody people person
    am is are was were be been being do does did doing done have has had having get gets got
    can could may might must shall should will would ought need needs want wants like
    what which who whom whose when where why how whether if then than so as
    of to in on at by for from with about into onto over under between through during
    and or but nor also too just only really actually currently right now today please
    there here up down out off
    hi hello hey hiya dear team thanks thank cheers ta um uh er erm hmm yeah yes ok okay well
    quick question wondering wonder ask asking tell know show give explain help let say see
    way ways method process procedure steps step possible able exactly best good
    tip tips advice recommendation recommendations suggestion suggestions top much many time
    go going come make makes made take takes put use using work works
    not no non never without
    s t d ll re ve m""")

# One line a meaning.
_SYNONYMS = """
get receive obtain acquire retrieve fetch
buy purchase
create make build generate set setup produce establish
add insert invite
change update modify edit alter amend switch
delete remove erase
cancel terminate end stop quit
start begin commence
find locate search
choose select pick
show display list view see
fix repair resolve solve mend troubleshoot
send submit
request ask apply
contact reach call phone
book reserve
booking reservation
return send
refund money reimburse reimbursement
cost price charge fee rate
pay payment
cheap affordable inexpensive budget
big large huge
small little tiny
fast quick rapid speedy
easy simple straightforward
hard difficult tough
begin start
error issue problem bug fault trouble
difference differ distinction compare comparison versus vs
example sample instance
store shop
picture image photo photograph
mobile phone cell smartphone cellphone
telephone phone
film movie
car vehicle auto automobile
motor car
child kid
teen teenager
doctor gp physician
medicine medication drug
holiday vacation leave
flat apartment
house home
road street
firm company business organisation
employee staff worker colleague
boss manager employer
job employment position role
salary pay wage
customer client
advantage benefit pro
disadvantage drawback con downside
meaning mean definition define
purpose function
reason cause
result outcome
allow permit let
require need necessary
include cover contain
support offer provide
own possess
big major
important significant
famous popular known
trip journey travel
cash money
cashpoint atm
email mail
parcel package order shipment
delivery shipping ship
dispatch ship
document paperwork paper file
password passcode
account profile
app application
repo repository
website site webpage
photo picture
laptop computer pc notebook
install setup
download save
function method
folder directory
log login sign
signin login
register registration sign enrol enroll
renew renewal extend
cancel cancellation
deliver delivery
calculate compute work
convert transform turn
shut close
hour time
open opening
allow allowed
top best greatest
tip advice suggestion
guide tutorial introduction
recipe cook make
write compose draft
summarize summarise summary
translate translation
describe explain
join combine merge concatenate
string text
list array
dict dictionary
delete drop
speed performance
quick fast
afraid scared
sick ill unwell
weather forecast
city town
country nation
film movies
novel book
song track music
hike trail walk
newbie beginner novice
learn study
improve better enhance boost
reduce lower decrease cut
increase raise grow
earn make
happen occur
near nearest nearby close closest local
big biggest largest large
tall tallest high highest
last final
freeze block lock
unfreeze unblock unlock
wire transfer send move
lost missing
broken faulty damaged defective
late delayed delay
wait waiting
previous earlier prior
post discussion thread
deal handle manage cope
order request
check find see look
connect link
activate live
rating score
sign symptom
beginner newbie
intro introduction
technique method
recommend suggest
repeat refill
wage salary
reservation booking
jab vaccine vaccination
warranty guarantee
insurance policy cover
overseas abroad international
invoice bill
statement bill
"""


def _groups() -> dict[str, frozenset[int]]:
    groups: dict[str, set[int]] = {}
    for number, line in enumerate(_SYNONYMS.strip().splitlines()):
        for word in line.split():
            groups.setdefault(stem(word), set()).add(number)
    return {word: frozenset(numbers) for word, numbers in groups.items()}


_GROUPS_OF = _groups()
_NONE: frozenset[int] = frozenset()


def content(words: Sequence[Word], spent: AbstractSet[int]) -> tuple[Word, ...]:
    """The words that carry the meaning.

    Args:
        words: of the whole prompt.
        spent: positions of numbers and units, which are compared elsewhere.
    """
    return tuple(
        word
        for at, word in enumerate(words)
        if at not in spent and word.text not in _IDLE_WORDS and word.text[0].isalpha()
    )


def is_synonym(one: str, other: str) -> bool:
    """Whether two stems may stand for each other."""
    return not _GROUPS_OF.get(one, _NONE).isdisjoint(_GROUPS_OF.get(other, _NONE))
