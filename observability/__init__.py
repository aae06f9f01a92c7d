"""Floor 1: every instrumented edge, from span names to server builders."""
