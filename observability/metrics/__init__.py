"""The instruments of each service, with typed methods to record into them.

Attribute values are names with few possibilities (a model, a tier, a queue):
never an id, never content.
"""
