"""Which worker gets the next stream: pure policies over plain facts."""
