"""Pairs that the default verifier must go on telling apart, or together, by category."""

# What a served answer would get wrong.
TRAPS = {
    "negation": [
        ("How do I add money to my savings?", "How do I take money out of my savings?"),
        ("Which plants are safe for cats?", "Which plants are poisonous to cats?"),
        ("What should I wear to an interview?", "What should I never wear to an interview?"),
        ("How do I open a joint account?", "How do I close a joint account?"),
        ("How do I hide my profile?", "How do I make my profile visible to everyone?"),
        ("Is there a train on Sunday morning?", "Is there a train on Sunday evening?"),
    ],
    "number": [
        ("How much is a ticket for 2 adults?", "How much is a ticket for 3 adults?"),
        ("Book a taxi for 5am", "Book a taxi for 5pm"),
        ("Convert 5 miles to km", "How many kilometres are 50 miles?"),
        ("What was the inflation rate in 2019?", "What was the inflation rate in 2022?"),
    ],
    "entity": [
        ("What is the population of Sweden?", "What is the population of Norway?"),
        ("Call my mother", "Call my father"),
        ("Who directed Jaws?", "Who directed Alien?"),
        ("Does Lidl sell charcoal?", "Can I buy charcoal at Aldi?"),
        ("Share a file from Dropbox to OneDrive", "Share a file from OneDrive to Dropbox"),
    ],
    "scope": [
        ("How do I get a refund on a gift?", "How do I get a refund on a gift card?"),
        ("How do I boil potatoes?", "How do I boil sweet potatoes?"),
        ("How do I insure my car?", "How do I insure a rental car?"),
        ("Can I work remotely?", "Can I work remotely from another country?"),
        ("What's the luggage allowance?", "What's the luggage allowance for infants?"),
    ],
}
# What a refusal would ask the model for once more.
PARAPHRASES = {
    "reworded": [
        ("How do I cancel my gym membership?", "I'd like to end my gym membership, how?"),
        ("Can I bring my dog on the bus?", "Are dogs allowed on buses?"),
        ("How long should I boil an egg?", "What's the boiling time for an egg?"),
        ("Do you ship to Norway?", "Is delivery to Norway available?"),
        ("Can I pay in instalments?", "Is it possible to pay in instalments?"),
    ],
    "repeated": [
        ("How do I activate my new card?", "how do i activate my new crad"),
        ("Where is my nearest branch?", "Hi, where is my nearest branch? Thanks!"),
        ("Can I change my seat after booking?", "After booking, can I change my seat?"),
        ("What is compound interest?", "What's compund intrest?"),
    ],
}
